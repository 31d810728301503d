//! Who gets what of a machine with driver 580: eight GPUs, the first of them in three parts, IMEX channels, NVSwitches. The machine is a tree of
//! files, in which files stand for device nodes.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::grant::{Entry, Grant};
use super::super::linker_cache::LinkerCache;
use super::super::question::{Choice, QualifiedName, Question, Request};
use super::super::{Host, decide};

const VERSION: &str = "580.65.06";

/// The machine.
struct Machine(tempfile::TempDir);

/// Buses of the GPUs in the order of their device files, which is not the order of the bus: the last two are exchanged.
const BUSES: [&str; 8] = [
    "0000:0a:00.0",
    "0000:18:00.0",
    "0000:3b:00.0",
    "0000:5d:00.0",
    "0000:9a:00.0",
    "0000:ab:00.0",
    "0000:db:00.0",
    "0000:ba:00.0",
];

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let file = |path: &str, content: &str| machine.file(path, content);
        file(
            "proc/driver/nvidia/version",
            &format!(
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build  (x)\nGCC version:  gcc version 12.2.0\n"
            ),
        );
        file(
            "proc/driver/nvidia/params",
            "EnableMSI: 1\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n",
        );
        for (minor, bus) in BUSES.iter().enumerate() {
            file(
                &format!("proc/driver/nvidia/gpus/{bus}/information"),
                &format!(
                    "Model: \t\t NVIDIA H100 80GB HBM3\nGPU UUID: \t GPU-0000000{minor}-aaaa\nBus Location: \t {bus}\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
                ),
            );
            file(&format!("dev/nvidia{minor}"), "");
            file(&format!("dev/dri/card{}", minor + 1), "");
            file(&format!("dev/dri/renderD{}", minor + 128), "");
            file(
                &format!("sys/bus/pci/devices/{bus}/drm/card{}/dev", minor + 1),
                "",
            );
            file(
                &format!("sys/bus/pci/devices/{bus}/drm/renderD{}/dev", minor + 128),
                "",
            );
        }
        let capability = |path: &str, minor: u32| {
            file(
                &format!("proc/driver/nvidia/capabilities/{path}"),
                &format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"),
            );
            file(&format!("dev/nvidia-caps/nvidia-cap{minor}"), "");
        };
        capability("mig/config", 1);
        capability("mig/monitor", 2);
        for (gi, minor) in [(1, 12), (2, 21), (11, 102)] {
            capability(&format!("gpu0/mig/gi{gi}/access"), minor);
            capability(&format!("gpu0/mig/gi{gi}/ci0/access"), minor + 1);
        }
        for name in [
            "nvidiactl",
            "nvidia-uvm",
            "nvidia-uvm-tools",
            "nvidia-modeset",
            "nvidia-nvswitchctl",
            "nvidia-nvswitch0",
            "nvidia-nvswitch1",
            "gdrdrv",
        ] {
            file(&format!("dev/{name}"), "");
        }
        for number in 0..3 {
            file(
                &format!("dev/nvidia-caps-imex-channels/channel{number}"),
                "",
            );
        }
        let mut cache = LinkerCache::default();
        let mut library = |directory: &str, stem: &str, soname: &str, flags: u32| {
            let path = format!("{directory}/{stem}.so.{VERSION}");
            file(&path, "");
            symlink(
                format!("{stem}.so.{VERSION}"),
                machine.0.path().join(directory).join(soname),
            )
            .unwrap();
            cache.add(
                soname.as_bytes(),
                format!("/{directory}/{soname}").as_bytes(),
                flags,
            );
        };
        let native = super::super::linker_cache::NATIVE;
        for (stem, soname) in [
            ("libcuda", "libcuda.so.1"),
            ("libnvidia-ml", "libnvidia-ml.so.1"),
            ("libnvidia-encode", "libnvidia-encode.so.1"),
            ("libGLX_nvidia", "libGLX_nvidia.so.0"),
            ("libnvidia-ptxjitcompiler", "libnvidia-ptxjitcompiler.so.1"),
        ] {
            library("usr/lib/x86_64-linux-gnu", stem, soname, native[0]);
        }
        library(
            "usr/lib/i386-linux-gnu",
            "libcuda",
            "libcuda.so.1",
            native[1],
        );
        // In no cache, and of another version.
        file(
            &format!("usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.{VERSION}"),
            "",
        );
        file("usr/lib/x86_64-linux-gnu/libnvidia-cfg.so.570.1", "");
        cache.add(
            b"libnvidia-cfg.so.1",
            b"/usr/lib/x86_64-linux-gnu/libnvidia-cfg.so.570.1",
            native[0],
        );
        fs::create_dir_all(machine.0.path().join("etc")).unwrap();
        fs::write(machine.0.path().join("etc/ld.so.cache"), cache.write()).unwrap();
        for name in [
            "usr/bin/nvidia-smi",
            "usr/bin/nvidia-cuda-mps-control",
            "etc/OpenCL/vendors/nvidia.icd",
            "usr/share/vulkan/icd.d/nvidia_icd.json",
        ] {
            file(name, "");
        }
        file("run/nvidia-persistenced/socket", "");
        file("tmp/nvidia-mps/control", "");
        file(&format!("lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"), "");
        machine
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.0.path().join(path)).unwrap();
    }

    /// Asks: options as on the command line (`--gpus X`, `--device X`), then variables, those of the caller with a `!` in front, those of `-e`
    /// with a `-`.
    fn ask(&self, words: &[&str]) -> Result<Grant, String> {
        self.ask_within(words, None)
    }

    /// Asks in a control group that allows the GPUs of these device files alone.
    fn ask_within(&self, words: &[&str], allowed: Option<&[usize]>) -> Result<Grant, String> {
        let mut request = Request::default();
        let mut variables: [Vec<(String, String)>; 3] = Default::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--gpus" => {
                    request.gpus = Some(Choice::parse_option(words.next().unwrap()).unwrap());
                }
                "--device" => request.devices.push(words.next().unwrap().parse_name()),
                word => {
                    let (name, value) = word.split_once('=').unwrap();
                    let (whose, name) = match name.split_at(1) {
                        ("!", name) => (2, name),
                        ("-", name) => (1, name),
                        _ => (0, name),
                    };
                    variables[whose].push((name.to_owned(), value.to_owned()));
                }
            }
        }
        let look = |whose: usize, wanted: &str| {
            let found = variables[whose].iter().find(|(name, _)| name == wanted)?;
            Some(OsString::from(&found.1))
        };
        let question = Question {
            request: &request,
            user: &|name| look(1, name),
            image: &|name| look(0, name),
            prefixed: &|prefix| {
                let names = variables[0].iter().map(|(name, _)| name.clone());
                names.filter(|name| name.starts_with(prefix)).collect()
            },
            caller: &|name| look(2, name),
        };
        let mut host = Host::open(Some(self.0.path())).unwrap();
        if let Some(allowed) = allowed {
            let kept_back = (0..BUSES.len()).filter(|minor| !allowed.contains(minor));
            host.kept_back = kept_back
                .map(|minor| format!("/dev/nvidia{minor}").into())
                .collect();
        }
        decide(&host, &question)
            .map(Option::unwrap_or_default)
            .map_err(|error| error.to_string())
    }

    /// The nodes of the answer, as [`names`] writes them.
    fn nodes(&self, words: &[&str]) -> String {
        let grant = self.ask(words);
        names(&grant.unwrap_or_else(|error| panic!("{words:?}: {error}")))
    }
}

/// The nodes of an answer, without `/dev/` and those that every container has that has one.
fn names(grant: &Grant) -> String {
    let nodes = grant.edits.devices.iter().filter_map(|node| {
        let name = node.path.to_str().unwrap().strip_prefix("/dev/").unwrap();
        let is_common = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "gdrdrv"].contains(&name);
        (!is_common).then(|| {
            name.replace("nvidia-caps/nvidia-cap", "cap")
                .replace("nvidia", "n")
        })
    });
    nodes.collect::<Vec<_>>().join(" ")
}

trait ParseName {
    fn parse_name(&self) -> QualifiedName;
}

impl ParseName for str {
    fn parse_name(&self) -> QualifiedName {
        QualifiedName::parse(self).unwrap()
    }
}

const ALL: &str = "n0 cap12 cap13 cap21 cap22 cap102 cap103 n1 n2 n3 n4 n5 n7 n6";

#[test]
fn who_gets_which_gpu() {
    let machine = Machine::new();
    let job = "!SLURM_JOB_ID=1";
    let cases: &[(&[&str], &str)] = &[
        (&[], ""),
        (&["--gpus", "all"], ALL),
        (&["--gpus", "none", "NVIDIA_VISIBLE_DEVICES=all"], ""),
        (&["NVIDIA_VISIBLE_DEVICES=all"], ALL),
        (&["NVIDIA_VISIBLE_DEVICES=void"], ""),
        (&["NVIDIA_VISIBLE_DEVICES="], ""),
        (
            &["NVIDIA_VISIBLE_DEVICES=all", "-NVIDIA_VISIBLE_DEVICES=2"],
            "n2",
        ),
        // An index is a place in the order of the bus, with Slurm too.
        (&["--gpus", "6"], "n7"),
        (&[job, "!SLURM_STEP_GPUS=6"], "n7"),
        (
            &[job, "!SLURM_STEP_GPUS=1-2,5", "NVIDIA_VISIBLE_DEVICES=all"],
            "n1 n2 n5",
        ),
        (&[job, "!SLURM_JOB_GPUS=4"], "n4"),
        (&[job, "!CUDA_VISIBLE_DEVICES=3"], "n3"),
        (&[job, "!CUDA_VISIBLE_DEVICES=GPU-00000005-aaaa"], "n5"),
        (&[job, "!SLURM_STEP_GPUS=1,2", "--gpus", "all"], "n1 n2"),
        (&[job, "!SLURM_STEP_GPUS=1,2", "--gpus", "2"], "n2"),
        (&["--gpus", "GPU-00000003"], "n3"),
        (&["--gpus", "0000:3B:00.0,1"], "n1 n2"),
        (&["--device", "nvidia.com/gpu=4"], "n4"),
        (&["NVIDIA_VISIBLE_DEVICES=9,3"], "n3"),
        // Parts.
        (&["--gpus", "0"], "n0 cap12 cap13 cap21 cap22 cap102 cap103"),
        (&["--gpus", "0:1"], "n0 cap21 cap22"),
        (&["--gpus", "0:2,1"], "n0 cap102 cap103 n1"),
        (
            &["--gpus", "MIG-GPU-00000000-aaaa/11/0"],
            "n0 cap102 cap103",
        ),
        (
            &[job, "!CUDA_VISIBLE_DEVICES=MIG-1-a,MIG-2-b,MIG-3-c"],
            "n0 cap12 cap13 cap21 cap22 cap102 cap103",
        ),
        (
            &[
                "--gpus",
                "1",
                "-NVIDIA_MIG_CONFIG_DEVICES=all",
                "NVIDIA_MIG_MONITOR_DEVICES=all",
            ],
            "n1 cap1 cap2",
        ),
        // What connects them.
        (
            &["--gpus", "1", "NVIDIA_IMEX_CHANNELS=0,2"],
            "n1 n-caps-imex-channels/channel0 n-caps-imex-channels/channel2",
        ),
        (
            &[
                "--gpus",
                "1",
                "NVIDIA_IMEX_CHANNELS=all",
                "NVIDIA_NVSWITCH=enabled",
            ],
            "n1 n-caps-imex-channels/channel0 n-caps-imex-channels/channel1 n-caps-imex-channels/channel2 n-nvswitchctl n-nvswitch0 n-nvswitch1",
        ),
        // Displays.
        (
            &["--gpus", "1", "NVIDIA_DRIVER_CAPABILITIES=graphics"],
            "n-modeset n1 dri/card2 dri/renderD129",
        ),
    ];
    for (words, expected) in cases {
        assert_eq!(machine.nodes(words), *expected, "{words:?}");
    }
}

#[test]
fn what_cannot_be_had_is_an_error() {
    let machine = Machine::new();
    machine.remove("dev/nvidia5");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--gpus", "9"], &["there is no GPU `9`", "0:2"]),
        (
            &["--gpus", "GPU-0000000"],
            &["there is no GPU `GPU-0000000`"],
        ),
        (&["--gpus", "0:3"], &["`0:3`"]),
        (&["--gpus", "1:0"], &["`1:0`"]),
        (&["--gpus", "5"], &["cannot use GPU `5`", "nvidia-modprobe"]),
        (&["-NVIDIA_VISIBLE_DEVICES=17"], &["`17`"]),
        (&["--device", "nvidia.com/gpu=x"], &["`x`"]),
        (
            &["!SLURM_JOB_ID=1", "!SLURM_STEP_GPUS=1", "--gpus", "2"],
            &["cannot use GPU `2`", "SLURM_STEP_GPUS"],
        ),
        (
            &[
                "!SLURM_JOB_ID=1",
                "!SLURM_STEP_GPUS=1",
                "--device",
                "nvidia.com/gpu=2",
            ],
            &["cannot use GPU `2`"],
        ),
        (&["!SLURM_JOB_ID=1", "!SLURM_STEP_GPUS=14"], &["`14`"]),
        (
            &["!SLURM_JOB_ID=1", "!SLURM_STEP_GPUS=a"],
            &["SLURM_STEP_GPUS"],
        ),
        (&["--gpus", "MIG-1-a"], &["MIG-1-a", "3 parts", "GPU:PART"]),
        (
            &["--gpus", "1", "NVIDIA_DRIVER_CAPABILITIES=computer"],
            &["`computer`", "`compute`"],
        ),
        (
            &["--gpus", "1", "NVIDIA_REQUIRE_CUDA=cuda>=13.1"],
            &["`cuda>=13.1`", "NVIDIA_REQUIRE_CUDA", VERSION, "CUDA 13.0"],
        ),
        (
            &["--gpus", "1", "NVIDIA_REQUIRE_X=what"],
            &["NVIDIA_REQUIRE_X", "`what`"],
        ),
    ];
    for (words, parts) in cases {
        let error = machine.ask(words).map(|_| ()).unwrap_err();
        for part in *parts {
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
    let off = [
        "--gpus",
        "1",
        "NVIDIA_REQUIRE_CUDA=cuda>=13.1",
        "NVIDIA_DISABLE_REQUIRE=1",
    ];
    assert_eq!(machine.nodes(&off), "n1");
    // Without a driver `--gpus` cannot be met, and what an image says does not matter.
    let nothing = Machine(tempfile::tempdir().unwrap());
    assert!(
        nothing
            .ask(&["--gpus", "all"])
            .unwrap_err()
            .contains("there is no GPU `all`")
    );
    assert!(
        nothing
            .ask(&["NVIDIA_VISIBLE_DEVICES=all"])
            .unwrap()
            .edits
            .is_empty()
    );
}

fn libraries(grant: &Grant) -> Vec<String> {
    let libraries = grant.edits.libraries.iter();
    libraries
        .map(|it| {
            let name = it.host_path.file_name().unwrap().to_str().unwrap();
            let name = name.replace(&format!(".so.{VERSION}"), "");
            let width = if it.is_32_bit { "32" } else { "" };
            format!("{name}{width} {}", it.links.join(" "))
                .trim_end()
                .to_owned()
        })
        .collect()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn libraries_come_by_capability() {
    let machine = Machine::new();
    let of = |capabilities: &str| {
        let variable = format!("NVIDIA_DRIVER_CAPABILITIES={capabilities}");
        libraries(&machine.ask(&["--gpus", "all", &variable]).unwrap())
    };
    let compute = [
        "libcuda libcuda.so libcuda.so.1",
        "libnvidia-ptxjitcompiler libnvidia-ptxjitcompiler.so.1",
    ];
    assert_eq!(of("utility"), ["libnvidia-ml libnvidia-ml.so.1"]);
    assert_eq!(of("compute"), compute);
    assert_eq!(
        of(""),
        [&["libnvidia-ml libnvidia-ml.so.1"][..], &compute].concat()
    );
    assert_eq!(
        of("compute,compat32"),
        [&compute[..], &["libcuda32 libcuda.so libcuda.so.1"]].concat()
    );
    assert_eq!(
        of("video"),
        ["libvdpau_nvidia", "libnvidia-encode libnvidia-encode.so.1"]
    );
    assert_eq!(
        of("graphics"),
        ["libGLX_nvidia libGLX_indirect.so.0 libGLX_nvidia.so.0"]
    );
    let all = machine
        .ask(&["--gpus", "none", "-NVIDIA_VISIBLE_DEVICES=all"])
        .unwrap();
    assert!(libraries(&all).is_empty());
    // The driver alone.
    let alone = machine.ask(&["NVIDIA_VISIBLE_DEVICES=none"]).unwrap();
    assert_eq!(libraries(&alone).len(), 3);
    assert!(
        !alone
            .edits
            .devices
            .iter()
            .any(|node| node.path.ends_with("nvidia0"))
    );
    // What is of another version is not granted, and said to be so.
    let grant = machine.ask(&["--gpus", "all"]).unwrap();
    let other = grant
        .decisions
        .iter()
        .find(|it| it.subject.ends_with("libnvidia-cfg.so.570.1"))
        .unwrap();
    assert!(!other.is_granted && other.why.contains(VERSION), "{other}");
    machine.remove(&format!("usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}"));
    let grant = machine.ask(&["--gpus", "all"]).unwrap();
    assert!(
        grant
            .warnings
            .iter()
            .any(|warning| warning.contains("libcuda")),
        "{:?}",
        grant.warnings
    );
}

#[test]
fn files_and_sockets_of_the_driver() {
    let machine = Machine::new();
    let grant = machine.ask(&["--gpus", "1"]).unwrap();
    let mounts: Vec<_> = grant
        .edits
        .mounts
        .iter()
        .map(|mount| mount.path.to_str().unwrap())
        .collect();
    let firmware = format!("/lib/firmware/nvidia/{VERSION}");
    assert_eq!(
        mounts,
        [
            "/usr/bin/nvidia-smi",
            "/usr/bin/nvidia-cuda-mps-control",
            "/etc/OpenCL/vendors/nvidia.icd",
            "/var/run/nvidia-persistenced/socket",
            "/tmp/nvidia-mps",
            &firmware,
        ]
    );
    assert_eq!(grant.edits.cuda_compat.as_deref(), Some(VERSION));
    let asked = machine
        .ask(&[
            "--gpus",
            "1",
            "!CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-persistenced",
        ])
        .unwrap();
    assert_eq!(
        asked.edits.environment,
        [(
            "CUDA_MPS_PIPE_DIRECTORY".into(),
            "/run/nvidia-persistenced".into()
        )]
    );
}

/// `/proc/driver/nvidia` has the granted GPUs and parts, and no others.
#[test]
fn the_view_of_the_driver() {
    let machine = Machine::new();
    let grant = machine.ask(&["--gpus", "0:1,2"]).unwrap();
    let [view] = &grant.edits.directories[..] else {
        panic!("{:?}", grant.edits.directories);
    };
    assert_eq!(view.path, Path::new("/proc/driver/nvidia"));
    let shown: Vec<String> = view
        .entries
        .iter()
        .map(|(path, entry)| match entry {
            Entry::File(content) => format!(
                "{} {}",
                path.display(),
                String::from_utf8_lossy(content).lines().nth(1).unwrap()
            ),
            Entry::Host(_) | Entry::Directory | Entry::Symlink(_) => path.display().to_string(),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "capabilities/gpu0/mig/gi2/access",
            "capabilities/gpu0/mig/gi2/ci0/access",
            "gpus/0000:0a:00.0",
            "gpus/0000:3b:00.0",
            "version",
            "params ModifyDeviceFiles: 0",
            "gpus",
        ]
    );
}

/// What Slurm says of a step, by the documentation and in each configuration, and what a container then has. The last two GPUs are exchanged: the
/// sixth on the bus is `/dev/nvidia7`.
#[test]
fn gpus_of_a_step() {
    let machine = Machine::new();
    // Places in Slurm's list; numbers for CUDA; files that the control group allows; the container's GPUs, and its numbers for CUDA.
    for (step, cuda, allowed, nodes, inside) in [
        // ConstrainDevices=no: both are the host's, in the order of the bus.
        ("6", "6", None, "n7", Some("0")),
        ("2,6", "2,6", None, "n2 n7", Some("0,1")),
        ("2,6", "6", None, "n2 n7", Some("1")),
        ("0,1,2,3,4,5,6,7", "0,1,2,3,4,5,6,7", None, ALL, None),
        // ConstrainDevices=yes, AutoDetect: places in the order of the bus, CUDA counts what is allowed.
        ("6", "0", Some(&[7][..]), "n7", None),
        ("1,6", "0,1", Some(&[1, 7]), "n1 n7", None),
        // The same with files in gres.conf: places in the order of the files.
        ("6", "0", Some(&[6]), "n6", None),
        ("1,6", "0,1", Some(&[1, 6]), "n1 n6", None),
        // A task of its own: its control group allows one, and for CUDA that is the first.
        ("1", "0", Some(&[1]), "n1", None),
        (
            "0",
            "0",
            Some(&[0]),
            "n0 cap12 cap13 cap21 cap22 cap102 cap103",
            None,
        ),
        // A step with some of the job's GPUs, seen from where the job's are allowed.
        ("2", "0", Some(&[1, 2, 3]), "n2", None),
        // Parts have UUIDs.
        ("0", "GPU-00000001-aaaa", None, "n1", None),
    ] {
        let variables = [
            "!SLURM_JOB_ID=1".to_owned(),
            format!("!SLURM_STEP_GPUS={step}"),
            format!("!CUDA_VISIBLE_DEVICES={cuda}"),
        ];
        let words: Vec<&str> = variables.iter().map(String::as_str).collect();
        let grant = machine.ask_within(&words, allowed).unwrap();
        let found = grant.translations.first().map(|it| it.to.as_str());
        let shown = format!("{step} {cuda} {allowed:?}");
        assert_eq!(names(&grant), nodes, "{shown}");
        assert_eq!(found, inside, "{shown}");
    }
    // Nothing of Slurm but what a site sets for CUDA.
    let only_cuda = |cuda: &str, allowed| {
        let words = ["!SLURM_JOB_ID=1", cuda];
        let grant = machine.ask_within(&words, allowed).unwrap();
        let to = grant.translations.first().map(|it| it.to.clone());
        (names(&grant), to)
    };
    let own = only_cuda("!CUDA_VISIBLE_DEVICES=3", None);
    assert_eq!(own, ("n3".into(), Some("0".into())));
    let own = only_cuda("!CUDA_VISIBLE_DEVICES=1", Some(&[2, 3]));
    assert_eq!(own, ("n3".into(), None));
}

/// Without restrictions by control groups Slurm gives the host's numbers, and the container has others.
#[test]
fn numbers_of_the_job_are_translated() {
    let machine = Machine::new();
    for (step, cuda, expected) in [
        ("2,5", "2,5", Some("0,1")),
        ("2,5", "5", Some("1")),
        ("0,1", "0,1", None),
        ("2,5", "7", None),
        ("2,5", "GPU-00000005-aaaa", None),
        ("6,7", "6,7", Some("0,1")),
    ] {
        let [step, cuda] = [
            format!("!SLURM_STEP_GPUS={step}"),
            format!("!CUDA_VISIBLE_DEVICES={cuda}"),
        ];
        let grant = machine.ask(&["!SLURM_JOB_ID=1", &step, &cuda]).unwrap();
        let found = grant.translations.first().map(|it| it.to.as_str());
        assert_eq!(found, expected, "{step} {cuda}");
    }
}

#[test]
fn every_decision_has_its_reason() {
    let machine = Machine::new();
    let grant = machine.ask(&["--gpus", "1"]).unwrap();
    let shown: Vec<String> = grant.decisions.iter().map(ToString::to_string).collect();
    for expected in [
        "granted      GPU 1 (NVIDIA H100 80GB HBM3, 0000:18:00.0): `--gpus`",
        "not granted  GPU 2 (NVIDIA H100 80GB HBM3, 0000:3b:00.0): `--gpus` does not have it",
        "granted      /dev/nvidia1: GPU 1",
        "not granted  /dev/nvidia-modeset: for `graphics` and `display`, which is not asked for",
    ] {
        assert!(
            shown.iter().any(|line| line == expected),
            "{expected}\n{shown:#?}"
        );
    }
    let none = machine.ask(&[]).unwrap();
    assert!(none.edits.libraries.is_empty() && none.edits.directories.is_empty());
}
