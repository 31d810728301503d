//! Devices that descriptions grant: those of CDI, GPUs of AMD, fabrics. The host is a tree (`CISTA_HOST_ROOT`) with real device nodes, copies of
//! `/dev/zero` and `/dev/full` under other names: one that is granted can be read, and one that is not is not there, on no way.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cista_tests::case::{Case, Need, TestResult, Tier, Who};
use cista_tests::environment::{TestEnvironment, set_mode};
use cista_tests::error::HarnessError;
use cista_tests::image::Recipe;
use cista_tests::program::Program;

use super::bad_input::assert_clear_error;
use super::config::put;
use super::json;

/// Makes a device node of the tree: a copy of `/dev/zero`.
fn node(environment: &TestEnvironment<'_>, path: &str) -> Result<PathBuf, HarnessError> {
    let place = put(environment, &format!("host{path}"), "")?;
    Program::new("rm").arg(&place).check()?;
    Program::new("mknod")
        .args(["-m", "0666"])
        .arg(&place)
        .args(["c", "1", "5"])
        .check()?;
    Ok(place)
}

/// `cista start OPTIONS image COMMAND` on the tree.
fn start(
    environment: &TestEnvironment<'_>,
    options: &[&str],
    command: &str,
) -> Result<Program, HarnessError> {
    let image = environment.session().imported(Recipe::Busybox)?;
    Ok(environment
        .cista(["start"])
        .args(options)
        .arg(image)
        .args(["sh", "-c", command])
        .env("CISTA_HOST_ROOT", environment.path("host")))
}

/// A description with two devices, and edits for both and for each.
fn vendor(common: &str, first: &str) -> String {
    format!(
        r#"{{"cdiVersion":"1.1.0","kind":"vendor.com/board","containerEdits":{{"env":["VENDOR_COMMON=yes"]{common}}},
        "devices":[{{"name":"0","containerEdits":{{"deviceNodes":[{{"path":"/dev/board0"}}]{first}}}}},
        {{"name":"one","containerEdits":{{"deviceNodes":[{{"path":"/dev/board/other","hostPath":"/dev/board1","type":"c","major":1,"minor":5,"permissions":"rw"}}]}}}}]}}"#
    )
}

/// What a description says is in the container, and nothing else of the host.
fn what_cdi_describes_is_granted(environment: &TestEnvironment<'_>) -> TestResult {
    node(environment, "/dev/board0")?;
    node(environment, "/dev/board1")?;
    put(
        environment,
        "host/opt/vendor/lib/libvendor.so.7",
        "library\n",
    )?;
    put(environment, "host/opt/vendor/conf", "configured\n")?;
    let hook = put(
        environment,
        "host/usr/bin/vendor-hook",
        "#!/bin/sh -e\nstate=$(cat)\nbundle=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\n\
         root=$(sed 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/' $bundle/config.json)\n\
         echo \"$0 $1 $GIVEN ${HOME-none} $(echo \"$state\" | grep -c creating)\" > $root/by-hook\n\
         grep -o VENDOR_COMMON=yes $bundle/config.json >> $root/by-hook\n",
    )?;
    set_mode(&hook, 0o755)?;
    let common = r#","mounts":[{"hostPath":"/opt/vendor","containerPath":"/opt/inside","options":["ro","nosuid","nodev","rbind"]},
        {"hostPath":"tmpfs","containerPath":"/opt/memory","type":"tmpfs","options":["size=1M"]}],
        "hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["nvidia-cdi-hook","create-symlinks","--link","libvendor.so.7::/opt/links/libvendor.so"]},
        {"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["nvidia-cdi-hook","chmod","--mode","755","--path","/dev/board"]},
        {"hookName":"createRuntime","path":"/usr/bin/vendor-hook","args":["renamed","argument"],"env":["GIVEN=value","PATH=/usr/bin:/bin"],"timeout":20}]"#;
    put(environment, "host/etc/cdi/vendor.json", &vendor(common, ""))?;
    let seen = "head -c 3 /dev/board0 | od -An -tx1; cat /dev/board1 2>&1; echo $VENDOR_COMMON; \
        cat /opt/inside/conf; touch /opt/inside/conf 2>/dev/null || echo read-only; readlink /opt/links/libvendor.so; \
        cat /by-hook; touch /opt/memory/file && echo memory";
    let text = start(environment, &["--device", "vendor.com/board=0"], seen)?.text()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[0], "00 00 00", "{text}");
    assert!(lines[1].contains("No such file"), "{text}");
    assert_eq!(
        lines[2..6],
        ["yes", "configured", "read-only", "libvendor.so.7"],
        "{text}"
    );
    // The name that a script is called by is its path; its variables are its own and no others.
    assert!(
        lines[6].ends_with("vendor-hook argument value none 1"),
        "{text}"
    );
    assert_eq!(lines[7..], ["VENDOR_COMMON=yes", "memory"], "{text}");

    let text = start(
        environment,
        &["--device", "vendor.com/board=one"],
        "cd /dev; ls -d board*; head -c 1 board/other | od -An -tx1",
    )?
    .text()?;
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["board", "00"]);

    // NVIDIA's runtime takes such names in its variable.
    let text = start(
        environment,
        &[
            "-e",
            "NVIDIA_VISIBLE_DEVICES=vendor.com/board=0,vendor.com/board=one",
        ],
        "ls -d /dev/board*",
    )?
    .text()?;
    assert_eq!(text, "/dev/board\n/dev/board0");

    // What is in /var/run hides what is in /etc.
    put(
        environment,
        "host/var/run/cdi/vendor.yaml",
        "cdiVersion: 0.6.0\nkind: vendor.com/board\ndevices:\n- name: '0'\n  containerEdits:\n    env: [OTHER=1]\n",
    )?;
    let text = start(
        environment,
        &["--device", "vendor.com/board=0"],
        "echo $OTHER$VENDOR_COMMON; ls -d /dev/board* 2>&1; true",
    )?
    .text()?;
    assert!(
        text.starts_with("1\n") && text.contains("No such file"),
        "{text}"
    );
    Ok(())
}

/// What cannot be done for a description is told, and nothing is started.
fn what_cdi_cannot_have_is_told(environment: &TestEnvironment<'_>) -> TestResult {
    node(environment, "/dev/board0")?;
    node(environment, "/dev/board1")?;
    for (name, content) in [
        ("slow", "#!/bin/sh\nsleep 600\n"),
        ("failing", "#!/bin/sh\nexit 4\n"),
    ] {
        let path = put(environment, &format!("host/usr/bin/{name}"), content)?;
        set_mode(&path, 0o755)?;
    }
    let hook = |name: &str, path: &str, rest: &str| {
        format!(r#","hooks":[{{"hookName":"{name}","path":"{path}"{rest}}}]"#)
    };
    for (edits, words) in [
        (
            r#","netDevices":[{"hostInterfaceName":"eth9","name":"net0"}]"#.to_owned(),
            &["vendor.com/board=0", "eth9", "privileges"][..],
        ),
        (
            r#","intelRdt":{"closID":"x"}"#.into(),
            &["intelRdt", "privileges"],
        ),
        (
            r#","mounts":[{"hostPath":"/nothing/here","containerPath":"/x"}]"#.into(),
            &["/nothing/here", "vendor.json", "not there"],
        ),
        (
            r#","mounts":[{"hostPath":"/etc","containerPath":"/x","options":["odd"]}]"#.into(),
            &["odd"],
        ),
        (
            hook("createRuntime", "/usr/bin/absent", ""),
            &["/usr/bin/absent", "not there"],
        ),
        (
            hook("createRuntime", "/usr/bin/failing", ""),
            &["/usr/bin/failing", "exit status: 4"],
        ),
        (
            hook("createRuntime", "/usr/bin/slow", r#","timeout":1"#),
            &["/usr/bin/slow", "longer than 1 s"],
        ),
        (
            hook(
                "createContainer",
                "/usr/bin/nvidia-cdi-hook",
                r#","args":["nvidia-cdi-hook","create-symlinks","--link","x"]"#,
            ),
            &["create-symlinks", "no link"],
        ),
    ] {
        put(environment, "host/etc/cdi/vendor.json", &vendor("", &edits))?;
        let began = Instant::now();
        let outcome = start(
            environment,
            &["--device", "vendor.com/board=0"],
            "echo started",
        )?
        .run()?;
        assert_clear_error(&outcome, 125, words);
        assert!(began.elapsed() < Duration::from_secs(30));
        // Who does not ask for the device is not concerned.
        start(environment, &[], "true")?.check()?;
    }
    put(environment, "host/etc/cdi/vendor.json", &vendor("", ""))?;
    put(
        environment,
        "host/etc/cdi/bad.yaml",
        "cdiVersion: 9.9.9\nkind: a.b/c\ndevices: []\n",
    )?;
    for (device, words) in [
        (
            "vendor.com/board=7",
            &["vendor.com/board=7", "`0`, `one`", "bad.yaml"][..],
        ),
        (
            "vendor.com/other=0",
            &["kind `vendor.com/other`", "bad.yaml"],
        ),
    ] {
        let outcome = start(environment, &["--device", device], "true")?.run()?;
        assert_clear_error(&outcome, 125, words);
    }
    // The node that the description means is another one.
    let text = vendor("", "").replace("\"minor\":5", "\"minor\":3");
    put(environment, "host/etc/cdi/vendor.json", &text)?;
    let outcome = start(environment, &["--device", "vendor.com/board=one"], "true")?.run()?;
    assert_clear_error(&outcome, 125, &["/dev/board1", "1:5", "1:3"]);
    let outcome = start(environment, &["--device", "vendor.com/board"], "true")?.run()?;
    assert_eq!(outcome.code(), Some(2));
    assert!(outcome.error_text().contains("VENDOR/CLASS=NAME"));
    Ok(())
}

/// What there is can be listed, and what is wrong with descriptions is told beside it.
fn cdi_list(environment: &TestEnvironment<'_>) -> TestResult {
    put(environment, "host/etc/cdi/vendor.json", &vendor("", ""))?;
    let list = |arguments: &[&str]| {
        environment
            .cista(["cdi", "list"])
            .args(arguments)
            .env("CISTA_HOST_ROOT", environment.path("host"))
    };
    assert_eq!(
        list(&[]).text()?,
        "vendor.com/board=0\nvendor.com/board=one"
    );
    put(environment, "host/etc/cdi/again.json", &vendor("", ""))?;
    put(environment, "host/var/run/cdi/broken.yaml", "kind: [")?;
    let outcome = list(&[]).check()?;
    assert_eq!(outcome.text(), "");
    let told = outcome.error_text();
    assert_eq!(
        told.lines()
            .filter(|line| line.starts_with("warning: "))
            .count(),
        3,
        "{told}"
    );
    assert!(
        told.contains("again.json") && told.contains("broken.yaml"),
        "{told}"
    );
    let edits = r#","mounts":[{"hostPath":"/a","containerPath":"/b"}],"hooks":[{"hookName":"createRuntime","path":"/c"}]"#;
    let text = vendor("", edits).replace("board", "more");
    put(environment, "host/etc/cdi/more.json", &text)?;
    json::compare("cdi list", &[json::read(list(&["--json"]))?], &[]);
    Ok(())
}

/// A GPU that is not granted cannot be opened: not by its path, nor by a node made with its numbers, nor by other ways to the host.
fn other_gpus_are_not_there(environment: &TestEnvironment<'_>) -> TestResult {
    node(environment, "/dev/kfd")?;
    for (number, render) in [(1, 128), (2, 129)] {
        node(environment, &format!("/dev/dri/renderD{render}"))?;
        node(environment, &format!("/dev/dri/card{number}"))?;
        let topology = format!("host/sys/class/kfd/kfd/topology/nodes/{number}/properties");
        put(
            environment,
            &topology,
            &format!(
                "simd_count 304\ngfx_target_version 90402\nlocation_id {number}\ndrm_render_minor {render}\nunique_id {number}\n"
            ),
        )?;
        let drm = format!("host/sys/class/drm/renderD{render}/device/drm/card{number}/dev");
        put(environment, &drm, "")?;
    }
    let tree = environment.path("host").display().to_string();
    let other = "/dev/dri/renderD129";
    let ways = format!(
        "ls /dev /dev/dri | tr '\\n' ' '; echo; head -c 1 /dev/dri/renderD128 | od -An -tx1; \
         for way in {other} /proc/1/root{tree}{other} /proc/self/root{other} {tree}{other}; do \
           cat $way >/dev/null 2>/tmp/error && echo OPENED $way; cat /tmp/error; done; \
         mknod /tmp/made c 1 5 2>&1 && cat /tmp/made 2>&1; mknod /dev/made c 1 5 2>&1; mknod /dev/dri/made c 1 5 2>&1"
    );
    for options in [
        &["--gpus", "0"][..],
        &["--device", "amd.com/gpu=0"],
        &["-w", "-r", "--gpus", "GPU-0000000000000001"],
    ] {
        let text = start(environment, options, &ways)?.run()?.text();
        let mut lines = text.lines();
        let listing = lines.next().unwrap_or_default();
        assert!(
            listing.contains("card1 renderD128") && listing.contains(" kfd "),
            "{text}"
        );
        assert!(
            !listing.contains("card2") && !listing.contains("renderD129"),
            "{text}"
        );
        assert_eq!(lines.next().map(str::trim), Some("00"), "{text}");
        assert!(!text.contains("OPENED"), "{text}");
        assert_eq!(
            text.matches("No such file").count() + text.matches("Permission denied").count(),
            4,
            "{text}"
        );
        assert!(
            text.contains(&format!("can't open '{other}': No such file")),
            "{text}"
        );
        assert_eq!(text.matches("mknod: ").count(), 3, "{text}");
    }
    // Every decision is told when that is asked for.
    let outcome = start(environment, &["--gpus", "1", "--explain-devices"], "true")?.check()?;
    let told = outcome.error_text();
    assert!(
        told.contains("/dev/dri/renderD129") && told.contains("not asked for"),
        "{told}"
    );
    let check = environment
        .cista(["check", "gpu", "--gpus", "1", "--json"])
        .env("CISTA_HOST_ROOT", environment.path("host"));
    let report = json::read(check)?;
    json::compare("check gpu", &[report], &[]);
    let text = environment
        .cista(["check", "gpu", "-e", "AMD_VISIBLE_DEVICES=0"])
        .env("CISTA_HOST_ROOT", environment.path("host"))
        .text()?;
    assert!(text.contains("AMD GPU 1 (gfx942, "), "{text}");
    assert!(text.contains("not granted  GPU 1 "), "{text}");
    assert!(text.contains("granted      /dev/dri/renderD128"), "{text}");
    // A job has its own GPUs, and no others.
    let job = |options: &[&str], command: &str| {
        Ok::<_, HarnessError>(
            start(environment, options, command)?
                .env("SLURM_JOB_ID", "7")
                .env("SLURM_STEP_GPUS", "1"),
        )
    };
    let text = job(&[], "ls /dev/dri")?.text()?;
    assert_eq!(text, "card2\nrenderD129");
    let outcome = job(&["--gpus", "0"], "true")?.run()?;
    assert_clear_error(
        &outcome,
        125,
        &["AMD GPU", "not of this job", "SLURM_STEP_GPUS"],
    );
    Ok(())
}

/// Fabrics are there for who may open them; the command line and the administrator can say otherwise.
fn fabrics_by_default(environment: &TestEnvironment<'_>) -> TestResult {
    for name in ["knem", "xpmem", "cxi0", "cxi1", "vendor_net"] {
        node(environment, &format!("/dev/{name}"))?;
    }
    let closed = node(environment, "/dev/gdrdrv")?;
    set_mode(&closed, 0o600)?;
    let list = "ls /dev | grep -E '^(knem|xpmem|cxi.|gdrdrv|vendor_net)$' | tr '\\n' ' '";
    let text = start(environment, &[], list)?.text()?;
    let is_root = environment.user().is_root();
    let all = if is_root {
        "cxi0 cxi1 gdrdrv knem xpmem"
    } else {
        "cxi0 cxi1 knem xpmem"
    };
    assert_eq!(text.trim(), all);
    let options = [
        "--device",
        "host/slingshot=cxi1",
        "--device",
        "host/knem=none",
    ];
    let text = start(environment, &options, list)?.text()?;
    assert_eq!(text.trim(), all.replace("cxi0 ", "").replace("knem ", ""));
    if !is_root {
        let outcome = start(environment, &["--device", "host/gdrcopy=all"], "true")?.run()?;
        assert_clear_error(&outcome, 125, &["GDRCopy", "/dev/gdrdrv", "may not open"]);
    }
    put(
        environment,
        "host/etc/cista/devices.d/net.toml",
        "name = 'net'\ntitle = 'Vendor network'\ngrant = 'default'\n[[nodes]]\npath = '/dev/vendor_net'\n",
    )?;
    put(
        environment,
        "host/etc/cista/devices.d/knem.toml",
        "name = 'knem'\ntitle = 'KNEM'\ngrant = 'never'\n",
    )?;
    let text = start(environment, &[], list)?.text()?;
    assert_eq!(text.trim(), all.replace("knem", "vendor_net"));
    put(
        environment,
        "host/etc/cista/devices.d/knem.toml",
        "name = 'knem'\nttle = 'KNEM'\n",
    )?;
    let outcome = start(environment, &[], "true")?.run()?;
    assert_clear_error(&outcome, 125, &["devices.d/knem.toml", "ttle"]);
    Ok(())
}

const fn case(name: &'static str, run: fn(&TestEnvironment<'_>) -> TestResult) -> Case {
    Case {
        name,
        tier: Tier::Userns,
        who: Who::Both,
        needs: &[
            Need::Root,
            Need::Image(Recipe::Busybox),
            Need::UserNamespaces,
            Need::Fuse,
        ],
        run,
    }
}

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    case(
        "devices_described::what_cdi_describes_is_granted",
        what_cdi_describes_is_granted,
    ),
    case(
        "devices_described::what_cdi_cannot_have_is_told",
        what_cdi_cannot_have_is_told,
    ),
    Case {
        name: "devices_described::cdi_list",
        tier: Tier::Cli,
        who: Who::Both,
        needs: &[],
        run: cdi_list,
    },
    case(
        "devices_described::other_gpus_are_not_there",
        other_gpus_are_not_there,
    ),
    case("devices_described::fabrics_by_default", fabrics_by_default),
];
