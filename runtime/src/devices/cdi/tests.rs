//! Documents good, bad and hostile; directories that agree and that do not.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::document::{Document, Format};
use super::name::QualifiedName;
use super::registry::Registry;
use crate::devices::host::Host;

/// What `nvidia-ctk cdi generate` writes, shortened.
const NVIDIA: &str = r#"---
cdiVersion: 0.8.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
            - path: /dev/dri/card1
            - path: /dev/dri/renderD128
        hooks:
            - hookName: createContainer
              path: /usr/bin/nvidia-cdi-hook
              args:
                - nvidia-cdi-hook
                - create-symlinks
                - --link
                - ../card1::/dev/dri/by-path/pci-0000:01:00.0-card
              env:
                - NVIDIA_CTK_DEBUG=false
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/nvidiactl
          hostPath: /dev/nvidiactl
          fileMode: 0666
          permissions: rw
    mounts:
        - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06
          containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06
          options: [ro, nosuid, nodev, rbind, rprivate]
"#;

/// A document in JSON of a version, with fields before its devices and in its first device.
fn json(version: &str, fields: &str, device: &str) -> String {
    format!(
        r#"{{"cdiVersion":"{version}","kind":"vendor.com/dev",{fields}"devices":[{{"name":"d0","containerEdits":{{"env":["A=1"]{device}}}}}]}}"#
    )
}

fn parse(text: &str) -> Result<Document, String> {
    let format = match text.trim_start().starts_with('{') {
        true => Format::Json,
        false => Format::Yaml,
    };
    Document::parse(text.as_bytes(), format).map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    })
}

#[test]
fn a_document_of_a_driver() {
    let document = parse(NVIDIA).unwrap();
    assert_eq!(document.kind.to_string(), "nvidia.com/gpu");
    assert_eq!(document.version.to_string(), "0.8.0");
    let names: Vec<_> = document.devices.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["0", "all"]);
    assert_eq!(document.devices[0].edits.device_nodes.len(), 3);
    let node = &document.edits.device_nodes[0];
    assert_eq!(node.host_path, "/dev/nvidiactl");
    assert_eq!(
        (node.file_mode, node.permissions.as_str()),
        (Some(0o666), "rw")
    );
    assert_eq!(document.edits.mounts[0].options[0], "ro");
    assert_eq!(document.devices[0].edits.hooks[0].args.len(), 4);
}

#[test]
fn all_fields_of_the_latest_version() {
    let device = r#","deviceNodes":[{"path":"/dev/x","hostPath":"/dev/y","type":"c","major":10,"minor":200,"fileMode":432,"permissions":"rwm","uid":1,"gid":2}],
        "netDevices":[{"hostInterfaceName":"eth1","name":"net0"}],
        "mounts":[{"hostPath":"tmpfs","containerPath":"/t","type":"tmpfs","options":["size=1M"]}],
        "hooks":[{"hookName":"createRuntime","path":"/bin/true","args":["true"],"env":["B=2"],"timeout":3}],
        "additionalGids":[44,0],
        "intelRdt":{"closID":"c1","l3CacheSchema":"L3:0=f","memBwSchema":"MB:0=70","schemata":["L3:0=f"],"enableMonitoring":true}"#;
    let text = json(
        "1.1.0",
        r#""annotations":{"a.b/c":"d"},"containerEdits":null,"#,
        device,
    );
    let document = parse(&text).unwrap();
    let edits = &document.devices[0].edits;
    assert_eq!(edits.net_devices[0].host_interface_name, "eth1");
    assert_eq!(edits.additional_gids, [44, 0]);
    assert_eq!(edits.intel_rdt.as_ref().unwrap().clos_id, "c1");
    assert_eq!(edits.hooks[0].timeout, Some(3));
    assert_eq!(edits.device_nodes[0].file_mode, Some(0o660));
    // The same in YAML, of which JSON is a part.
    assert_eq!(
        Document::parse(text.as_bytes(), Format::Yaml).unwrap(),
        document
    );
}

#[test]
fn versions_have_what_they_have() {
    for (version, fields, device, problem) in [
        ("0.3.0", "", "", None),
        ("0.2.0", "", "", Some("came with 0.3.0")),
        (
            "0.3.0",
            "",
            r#","mounts":[{"hostPath":"/a","containerPath":"/a","type":"none"}]"#,
            Some("`type` of a mount, which came with 0.4.0"),
        ),
        (
            "0.4.0",
            "",
            r#","mounts":[{"hostPath":"/a","containerPath":"/a","type":"none"}]"#,
            None,
        ),
        (
            "0.4.0",
            "",
            r#","deviceNodes":[{"path":"/dev/x","hostPath":"/dev/y"}]"#,
            Some("0.5.0"),
        ),
        (
            "0.5.0",
            r#""annotations":{"a":"b"},"#,
            "",
            Some("`annotations`"),
        ),
        ("0.6.0", r#""annotations":{"a":"b"},"#, "", None),
        ("0.6.0", "", r#","additionalGids":[1]"#, Some("0.7.0")),
        ("0.6.0", "", r#","intelRdt":{"closID":"x"}"#, Some("0.7.0")),
        (
            "1.0.0",
            "",
            r#","intelRdt":{"enableMonitoring":true}"#,
            Some("1.1.0"),
        ),
        (
            "1.0.0",
            "",
            r#","netDevices":[{"hostInterfaceName":"a","name":"b"}]"#,
            Some("1.1.0"),
        ),
        ("1.0.0", "", r#","intelRdt":{"enableCMT":true}"#, None),
        (
            "1.1.0",
            "",
            r#","intelRdt":{"enableCMT":true}"#,
            Some("no `enableCMT`"),
        ),
        ("1.2.0", "", "", Some("knows those up to 1.1.0")),
        ("x", "", "", Some("version `x`")),
    ] {
        let text = json(version, fields, device);
        match (parse(&text), problem) {
            (Ok(_), None) => {}
            (Err(error), Some(problem)) => assert!(error.contains(problem), "{text}: {error}"),
            (result, _) => panic!("{text}: {result:?}"),
        }
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let value = |device: &str| json("1.1.0", "", device);
    for (text, problem) in [
        (String::new(), "not understood"),
        ("{".into(), "not understood"),
        ("[]".into(), "not understood"),
        ("a: b\n---\nc: d".into(), "not understood"),
        ("a: &a [*a]".into(), "not understood"),
        (json("1.1.0", r#""container-runtime":[],"#, ""), "container-runtime"),
        (value(r#","devices":[]"#), "unknown field"),
        (value(r#","env":["C=1"]"#), "duplicate field"),
        (value(r#","deviceNodes":[{"path":"/dev/x","mode":1}]"#), "unknown field"),
        (value(r#","deviceNodes":[{"path":"dev/x"}]"#), "`deviceNodes.path` of device `d0`"),
        (value(r#","deviceNodes":[{}]"#), "an absolute path"),
        (value(r#","deviceNodes":[{"path":"/dev/x","type":"s"}]"#), "`b`, `c`, `u` or `p`"),
        (value(r#","deviceNodes":[{"path":"/dev/x","permissions":"rx"}]"#), "`rwm`"),
        (value(r#","deviceNodes":[{"path":"/dev/x","major":-1}]"#), "number of a device"),
        (value(r#","deviceNodes":[{"path":"/dev/x","uid":-1}]"#), "not understood"),
        (value(r#","mounts":[{"hostPath":"","containerPath":"/x"}]"#), "mounts.hostPath"),
        (value(r#","mounts":[{"hostPath":"/x"}]"#), "mounts.containerPath"),
        (value(r#","mounts":[{"hostPath":"/x\u0000","containerPath":"/x"}]"#), "mounts.hostPath"),
        (value(r#","hooks":[{"hookName":"never","path":"/x"}]"#), "hooks.hookName"),
        (value(r#","hooks":[{"hookName":"poststop","path":"x"}]"#), "hooks.path"),
        (value(r#","hooks":[{"hookName":"poststop","path":"/x","timeout":0}]"#), "hooks.timeout"),
        (value(r#","hooks":[{"hookName":"poststop","path":"/x","env":["secret"]}]"#), "hooks.env"),
        (value(r#","intelRdt":{"closID":"../x"}"#), "intelRdt.closID"),
        (value(r#","netDevices":[{"hostInterfaceName":"a/b","name":"x"}]"#), "netDevices"),
        (r#"{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[]}"#.into(), "no devices"),
        (r#"{"cdiVersion":"1.1.0","kind":"v.com/c"}"#.into(), "no devices"),
        (r#"{"cdiVersion":"1.1.0","kind":"c","devices":[]}"#.into(), "expected `VENDOR/CLASS`"),
        (r#"{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[{"name":"a"}]}"#.into(), "no `containerEdits`"),
        (r#"{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[{"name":"a","containerEdits":{"env":["A="]}},{"name":"a","containerEdits":{"env":["A="]}}]}"#.into(), "two devices"),
        (r#"{"cdiVersion":"1.1.0","kind":"v.com/c","annotations":{"a b":"c"},"devices":[{"name":"a","containerEdits":{"env":["A="]}}]}"#.into(), "annotations"),
    ] {
        let error = parse(&text).expect_err(&text);
        assert!(error.contains(problem), "{text}: {error}");
    }
    // Values of variables may be secrets.
    let error =
        parse(&value(r#","env":["=hidden"]"#).replacen(r#""env":["A=1"],"#, "", 1)).unwrap_err();
    assert!(
        error.contains("`env`") && !error.contains("hidden"),
        "{error}"
    );
}

/// A small document that would become a large one.
#[test]
fn what_repeats_itself_beyond_measure_is_refused() {
    let mut text = String::from(
        "cdiVersion: 1.1.0\nkind: v.com/c\nannotations:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n",
    );
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(9);
        text.push_str(&format!("  a{level}: &a{level} [{before}]\n"));
    }
    assert!(parse(&text).unwrap_err().contains("not understood"));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for format in [Format::Json, Format::Yaml] {
        assert!(Document::parse(deep.as_bytes(), format).is_err());
    }
}

fn load_registry(directories: &[PathBuf]) -> Registry {
    Registry::load_from(&Host::open(None).unwrap(), directories)
}

/// Directories with documents, by directory, file name and content.
fn load(files: &[(&str, &str, String)]) -> (tempfile::TempDir, Registry) {
    let scratch = tempfile::tempdir().unwrap();
    let directories: Vec<PathBuf> = ["etc", "run"].map(|name| scratch.path().join(name)).into();
    for directory in &directories {
        fs::create_dir(directory).unwrap();
    }
    for (directory, name, content) in files {
        fs::write(scratch.path().join(directory).join(name), content).unwrap();
    }
    let registry = load_registry(&directories);
    (scratch, registry)
}

/// A document with one variable by which it is known again.
fn marked(devices: &[&str], mark: &str) -> String {
    let devices: Vec<String> = devices
        .iter()
        .map(|name| {
            format!(r#"{{"name":"{name}","containerEdits":{{"env":["OWN={mark}-{name}"]}}}}"#)
        })
        .collect();
    format!(
        r#"{{"cdiVersion":"1.0.0","kind":"v.com/c","containerEdits":{{"env":["ALL={mark}"]}},"devices":[{}]}}"#,
        devices.join(",")
    )
}

fn names(texts: &[&str]) -> Vec<QualifiedName> {
    texts
        .iter()
        .map(|text| QualifiedName::parse(text).unwrap())
        .collect()
}

#[test]
fn later_directories_count_more() {
    let (_scratch, registry) = load(&[
        ("etc", "a.json", marked(&["0", "1"], "old")),
        ("run", "a.yaml", marked(&["1", "2"], "new")),
        ("run", "ignored.yml", "{".into()),
        ("run", "ignored", "{".into()),
    ]);
    assert_eq!(registry.problems().count(), 0);
    let found: Vec<_> = registry.devices().map(|it| it.name.to_string()).collect();
    assert_eq!(found, ["v.com/c=0", "v.com/c=1", "v.com/c=2"]);
    let asked = names(&["v.com/c=1", "v.com/c=0", "v.com/c=2", "v.com/c=1"]);
    let edits: Vec<_> = registry
        .edits(&asked)
        .unwrap()
        .iter()
        .flat_map(|asked| asked.edits.env.clone())
        .collect();
    assert_eq!(
        edits,
        ["ALL=new", "OWN=new-1", "ALL=old", "OWN=old-0", "OWN=new-2"]
    );
}

#[test]
fn what_contradicts_itself_is_nobodys() {
    let (_scratch, registry) = load(&[
        ("etc", "a.json", marked(&["0", "1", "2"], "a")),
        ("etc", "b.json", marked(&["1", "2"], "b")),
        ("run", "c.json", marked(&["2"], "c")),
    ]);
    let found: Vec<_> = registry.devices().map(|it| it.name.name.clone()).collect();
    assert_eq!(found, ["0", "2"]);
    let error = registry
        .edits(&names(&["v.com/c=1"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a.json") && error.contains("b.json"),
        "{error}"
    );
    assert_eq!(registry.problems().count(), 1);
    // What a later directory says settles it.
    assert!(registry.edits(&names(&["v.com/c=2"])).is_ok());
}

#[test]
fn a_document_that_cannot_be_used_hinders_no_other() {
    let (scratch, registry) = load(&[
        ("etc", "a.json", marked(&["0"], "a")),
        ("etc", "bad.yaml", "cdiVersion: [".into()),
    ]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        scratch.path().join("run/pipe.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::create_dir(scratch.path().join("run/directory.json")).unwrap();
    assert!(registry.edits(&names(&["v.com/c=0"])).is_ok());
    let error = registry
        .edits(&names(&["v.com/c=9"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`0`") && error.contains("bad.yaml"),
        "{error}"
    );
    let error = registry
        .edits(&names(&["w.com/c=9"]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("kind `w.com/c`"), "{error}");
    assert_eq!(registry.problems().count(), 1);
    let registry = load_registry(&[scratch.path().join("run"), "/nonexistent".into()]);
    let problems: Vec<_> = registry.problems().collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems
            .iter()
            .all(|problem| problem.contains("cannot read"))
    );
    assert!(load_registry(&[]).find(&names(&["v.com/c=0"])[0]).is_err());
    assert!(!Path::new("/nonexistent").exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever stands in a file: an answer, and no panic.
    #[test]
    fn nothing_that_is_read_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Document::parse(&bytes, Format::Json);
        let _ = Document::parse(&bytes, Format::Yaml);
    }

    /// The same close to what is right: a good document with a piece replaced.
    #[test]
    fn nor_does_what_is_nearly_right(at in 0..NVIDIA.len(), length in 0..40_usize, piece in "[ -~\n]{0,24}|&[a-c] |\\*[a-c]|<<: \\*a") {
        prop_assume!(NVIDIA.is_char_boundary(at));
        let end = (at + length).min(NVIDIA.len());
        let text = format!("{}{piece}{}", &NVIDIA[..at], &NVIDIA[end..]);
        if let Ok(document) = Document::parse(text.as_bytes(), Format::Yaml) {
            for edits in document.all_edits() {
                prop_assert!(edits.env.iter().all(|variable| variable.contains('=')));
                prop_assert!(edits.device_nodes.iter().all(|node| node.path.starts_with('/')));
                prop_assert!(edits.mounts.iter().all(|mount| mount.container_path.starts_with('/')));
            }
        }
    }
}
