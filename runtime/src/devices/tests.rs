//! Who gets what, on machines that are made of files: a node with MI300s, one with Gaudis, one with adapters of a fabric.
//!
//! Files stand for device nodes there; see [`Host::node`]. What a container gets is written as the nodes and links that it has, in their order.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::cdi::name::QualifiedName;
use super::grant::Entry;
use super::linker_cache::{self, LinkerCache};
use super::question::{Choice, Question, Request};
use super::{Grant, Host, VENDORS, decide};

/// A machine.
struct Tree {
    directory: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let tree = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        for name in ["null", "zero", "fuse"] {
            tree.node(&format!("/dev/{name}"));
        }
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.directory.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn node(&self, path: &str) -> &Self {
        self.file(path, "")
    }

    fn file(&self, path: &str, content: &str) -> &Self {
        fs::write(self.path(path), content).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.path(path)).unwrap();
        self
    }

    fn host(&self) -> Host {
        Host::open(Some(self.directory.path())).unwrap()
    }

    /// Two MI300X, the second of them in two partitions.
    fn mi300() -> Self {
        let tree = Self::new();
        tree.node("/dev/kfd");
        let topology = "/sys/class/kfd/kfd/topology/nodes";
        tree.file(
            &format!("{topology}/0/properties"),
            "cpu_cores_count 96\nsimd_count 0\ndrm_render_minor 0\nunique_id 0\n",
        );
        for (node, render, card, unique, location) in [
            (1, 128, Some(1), 1_234_605_616_436_508_552_u64, 0x500),
            (2, 136, Some(2), 0xff00_aa11_22bb_33cc, 0x2600),
            (3, 137, None, 0xff00_aa11_22bb_33cc, 0x2601),
        ] {
            tree.file(
                &format!("{topology}/{node}/properties"),
                &format!("cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\nlocation_id {location}\ndomain 0\ndrm_render_minor {render}\nunique_id {unique}\n"),
            );
            tree.node(&format!("/dev/dri/renderD{render}"));
            let drm = format!("/sys/class/drm/renderD{render}/device/drm");
            tree.file(&format!("{drm}/renderD{render}/dev"), "");
            if let Some(card) = card {
                tree.node(&format!("/dev/dri/card{card}"));
                tree.file(&format!("{drm}/card{card}/dev"), "");
            }
        }
        // A card of the board, which is no GPU to compute with.
        tree.node("/dev/dri/card0");
        tree
    }

    /// Three Gaudis, one of them with ports, and an accelerator of another maker.
    fn gaudi() -> Self {
        let tree = Self::new();
        tree.file("/sys/bus/pci/drivers/habanalabs/bind", "");
        tree.file("/sys/bus/pci/drivers/intel_vpu/bind", "");
        for (number, driver, module) in [
            (0, "habanalabs", "5"),
            (1, "intel_vpu", ""),
            (2, "habanalabs", "4"),
            (10, "habanalabs", "0"),
        ] {
            let device = format!("/sys/devices/pci0/0000:{number:02x}:00.0");
            tree.link(
                &format!("{device}/driver"),
                &format!("../../../bus/pci/drivers/{driver}"),
            );
            tree.file(&format!("{device}/module_id"), &format!("{module}\n"));
            tree.link(
                &format!("/sys/class/accel/accel{number}/device"),
                &format!("../../../devices/pci0/0000:{number:02x}:00.0"),
            );
            tree.node(&format!("/dev/accel/accel{number}"));
            tree.node(&format!("/dev/accel/accel_controlD{number}"));
        }
        tree.file(
            "/sys/devices/pci0/0000:02:00.0/infiniband_verbs/uverbs3/dev",
            "",
        );
        tree.node("/dev/infiniband/uverbs3");
        tree
    }

    /// Two ConnectX, an EFA, an Omni-Path adapter, two of Slingshot, and helpers for copies.
    fn fabrics() -> Self {
        let tree = Self::new();
        let adapters = [
            ("mlx5_0", "mlx5_core", 0),
            ("mlx5_10", "mlx5_core", 1),
            ("mlx5_2", "mlx5_core", 2),
            ("rdmap0s6", "efa", 3),
            ("hfi1_0", "hfi1", 4),
        ];
        for (name, driver, number) in adapters {
            let device = format!("/sys/devices/pci0/0000:{number:02x}:00.0");
            tree.link(
                &format!("{device}/driver"),
                &format!("../../../bus/pci/drivers/{driver}"),
            );
            tree.link(&format!("{device}/infiniband/{name}/device"), "../..");
            tree.link(
                &format!("/sys/class/infiniband/{name}"),
                &format!("../../devices/pci0/0000:{number:02x}:00.0/infiniband/{name}"),
            );
            for (class, node) in [
                ("infiniband_verbs", "uverbs"),
                ("infiniband_mad", "umad"),
                ("infiniband_mad", "issm"),
            ] {
                if driver == "efa" && class == "infiniband_mad" {
                    continue;
                }
                tree.file(
                    &format!("{device}/{class}/{node}{number}/ibdev"),
                    &format!("{name}\n"),
                );
                tree.link(
                    &format!("/sys/class/{class}/{node}{number}"),
                    &format!("../../devices/pci0/0000:{number:02x}:00.0/{class}/{node}{number}"),
                );
                tree.node(&format!("/dev/infiniband/{node}{number}"));
            }
        }
        tree.file("/sys/class/infiniband_verbs/abi_version", "6\n");
        for node in [
            "infiniband/rdma_cm",
            "hfi1_0",
            "cxi0",
            "cxi1",
            "gdrdrv",
            "xpmem",
            "knem",
        ] {
            tree.node(&format!("/dev/{node}"));
        }
        tree
    }
}

/// What somebody asks for.
#[derive(Clone, Default)]
struct Ask<'a> {
    gpus: Option<&'a str>,
    devices: &'a [&'a str],
    user: &'a [(&'a str, &'a str)],
    image: &'a [(&'a str, &'a str)],
    caller: &'a [(&'a str, &'a str)],
}

impl Ask<'_> {
    fn of(&self, host: &Host) -> Result<Grant, String> {
        let parse = |text: &&str| QualifiedName::parse(text).unwrap();
        let request = Request {
            gpus: self.gpus.map(|text| Choice::parse_option(text).unwrap()),
            devices: self.devices.iter().map(parse).collect(),
            ..Request::default()
        };
        let look = |list: &[(&str, &str)], name: &str| {
            let found = list.iter().find(|(known, _)| *known == name)?;
            Some(OsString::from(found.1))
        };
        let question = Question {
            request: &request,
            user: &|name| look(self.user, name),
            image: &|name| look(self.image, name),
            prefixed: &|_| Vec::new(),
            caller: &|name| look(self.caller, name),
        };
        decide(host, &question)
            .map(Option::unwrap_or_default)
            .map_err(|error| error.to_string())
    }
}

fn nodes(grant: &Grant) -> String {
    let names = grant.edits.devices.iter();
    let names: Vec<_> = names
        .map(|node| {
            node.path
                .strip_prefix("/dev")
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    names.join(" ")
}

/// Asks for many things, and compares the nodes or the error.
fn compare(host: &Host, cases: &[(Ask<'_>, Result<&str, &str>)]) {
    for (ask, expected) in cases {
        let Ask {
            gpus,
            devices,
            user,
            image,
            caller,
        } = ask;
        let shown = format!("{gpus:?} {devices:?} {user:?} {image:?} {caller:?}");
        match (ask.of(host), expected) {
            (Ok(grant), Ok(expected)) => assert_eq!(nodes(&grant), *expected, "{shown}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{shown}: {error}"),
            (result, _) => panic!("{shown}: {:?}", result.map(|grant| nodes(&grant))),
        }
    }
}

const JOB: (&str, &str) = ("SLURM_JOB_ID", "1");

#[test]
fn gpus_of_amd() {
    let tree = Tree::mi300();
    let first = "kfd dri/renderD128 dri/card1";
    let second = "kfd dri/renderD136 dri/card2 dri/renderD137";
    let both = "kfd dri/renderD128 dri/card1 dri/renderD136 dri/card2 dri/renderD137";
    let gpus = |text| Ask {
        gpus: Some(text),
        ..Ask::default()
    };
    let devices = |devices| Ask {
        devices,
        ..Ask::default()
    };
    let image = |image| Ask {
        image,
        ..Ask::default()
    };
    let job = |caller| Ask {
        caller,
        ..Ask::default()
    };
    compare(
        &tree.host(),
        &[
            (Ask::default(), Ok("")),
            (gpus("all"), Ok(both)),
            (gpus("none"), Ok("")),
            (gpus("0"), Ok(first)),
            (gpus("1-2"), Ok(second)),
            (
                gpus("2,0"),
                Ok("kfd dri/renderD128 dri/card1 dri/renderD137"),
            ),
            (gpus("GPU-ff00aa1122bb33cc"), Ok(second)),
            (gpus("0xFF00AA1122BB33CC"), Ok(second)),
            (gpus("0000:05:00.0"), Ok(first)),
            (gpus("renderD136"), Ok("kfd dri/renderD136 dri/card2")),
            (
                gpus("3"),
                Err("no AMD GPU `3` here; there are GPU 0 (gfx942, 0000:05:00.0)"),
            ),
            (gpus("0-3"), Err("no AMD GPU `0-3`")),
            (devices(&["amd.com/gpu=0"]), Ok(first)),
            (
                devices(&["amd.com/gpu=0", "amd.com/gpu=1"]),
                Ok("kfd dri/renderD128 dri/card1 dri/renderD136 dri/card2"),
            ),
            (devices(&["amd.com/gpu=all"]), Ok(both)),
            (devices(&["amd.com/gpu=7"]), Err("no AMD GPU `7`")),
            (devices(&["nvidia.com/gpu=0"]), Err("nvidia.com/gpu=0")),
            (image(&[("AMD_VISIBLE_DEVICES", "all")]), Ok(both)),
            (image(&[("AMD_VISIBLE_DEVICES", "void")]), Ok("")),
            (image(&[("AMD_VISIBLE_DEVICES", "0,9")]), Ok(first)),
            (
                Ask {
                    user: &[("AMD_VISIBLE_DEVICES", "0,9")],
                    ..Ask::default()
                },
                Err("no AMD GPU `9`"),
            ),
            (
                Ask {
                    gpus: Some("0"),
                    image: &[("AMD_VISIBLE_DEVICES", "all")],
                    ..Ask::default()
                },
                Ok(first),
            ),
            (
                job(&[JOB, ("SLURM_STEP_GPUS", "0"), ("ROCR_VISIBLE_DEVICES", "1")]),
                Ok(first),
            ),
            (job(&[JOB, ("ROCR_VISIBLE_DEVICES", "1,2")]), Ok(second)),
            (
                job(&[JOB, ("HIP_VISIBLE_DEVICES", "GPU-ff00aa1122bb33cc")]),
                Ok(second),
            ),
            (job(&[("ROCR_VISIBLE_DEVICES", "0")]), Ok("")),
            (
                Ask {
                    gpus: Some("all"),
                    caller: &[JOB, ("SLURM_STEP_GPUS", "0")],
                    ..Ask::default()
                },
                Ok(first),
            ),
            (
                Ask {
                    gpus: Some("1"),
                    caller: &[JOB, ("SLURM_STEP_GPUS", "0")],
                    ..Ask::default()
                },
                Err("not of this job: see `SLURM_STEP_GPUS` of the job"),
            ),
            (
                Ask {
                    devices: &["amd.com/gpu=1"],
                    caller: &[JOB, ("SLURM_STEP_GPUS", "0")],
                    ..Ask::default()
                },
                Err("not of this job"),
            ),
        ],
    );
    let lines: Vec<String> = VENDORS
        .iter()
        .filter(|vendor| vendor.name() == "amd")
        .flat_map(|vendor| vendor.inventory(&tree.host()).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[0],
        "AMD GPU 0 (gfx942, 0000:05:00.0) UUID GPU-1122334455667788: /dev/dri/renderD128"
    );
}

#[test]
fn accelerators_of_habana() {
    let tree = Tree::gaudi();
    let both = |numbers: &[u32]| {
        let nodes: Vec<String> = numbers
            .iter()
            .map(|number| {
                let ports = if *number == 2 {
                    " infiniband/uverbs3"
                } else {
                    ""
                };
                format!("accel/accel{number} accel/accel_controlD{number}{ports}")
            })
            .collect();
        nodes.join(" ")
    };
    let user = |user| Ask {
        user,
        ..Ask::default()
    };
    compare(
        &tree.host(),
        &[
            (
                user(&[("HABANA_VISIBLE_DEVICES", "all")]),
                Ok(&both(&[0, 2, 10])),
            ),
            (
                user(&[("HABANA_VISIBLE_DEVICES", "2,10")]),
                Ok(&both(&[2, 10])),
            ),
            (
                user(&[("HABANA_VISIBLE_DEVICES", "1")]),
                Err("no Gaudi accelerator `1`"),
            ),
            (
                user(&[
                    ("HABANA_VISIBLE_DEVICES", "all"),
                    ("HABANA_VISIBLE_MODULES", "4,0"),
                ]),
                Ok(&both(&[2, 10])),
            ),
            (
                Ask {
                    devices: &["intel.com/gaudi=10"],
                    ..Ask::default()
                },
                Ok(&both(&[10])),
            ),
            (
                Ask {
                    caller: &[JOB, ("SLURM_JOB_GPUS", "2")],
                    ..Ask::default()
                },
                Ok(&both(&[2])),
            ),
            (Ask::default(), Ok("")),
        ],
    );
}

#[test]
fn gpus_of_intel() {
    let tree = Tree::new();
    for driver in ["xe", "i915", "amdgpu"] {
        tree.file(&format!("/sys/bus/pci/drivers/{driver}/bind"), "");
    }
    for (card, driver, address) in [
        (0, "amdgpu", "0000:01:00.0"),
        (1, "xe", "0000:3a:00.0"),
        (2, "i915", "0000:03:00.0"),
    ] {
        let device = format!("/sys/devices/pci0/{address}");
        let render = 128 + card;
        tree.link(
            &format!("{device}/driver"),
            &format!("../../../bus/pci/drivers/{driver}"),
        );
        tree.file(&format!("{device}/drm/card{card}/dev"), "");
        tree.file(&format!("{device}/drm/renderD{render}/dev"), "");
        tree.link(&format!("{device}/drm/card{card}/device"), "../..");
        tree.link(
            &format!("/sys/class/drm/card{card}"),
            &format!("../../devices/pci0/{address}/drm/card{card}"),
        );
        tree.file(&format!("/sys/class/drm/card{card}-DP-1/status"), "");
        tree.node(&format!("/dev/dri/card{card}"));
        tree.node(&format!("/dev/dri/renderD{render}"));
        tree.link(
            &format!("/dev/dri/by-path/pci-{address}-card"),
            &format!("../card{card}"),
        );
        tree.link(
            &format!("/dev/dri/by-path/pci-{address}-render"),
            &format!("../renderD{render}"),
        );
    }
    let host = tree.host();
    let ask = |gpus| Ask {
        gpus: Some(gpus),
        ..Ask::default()
    };
    compare(
        &host,
        &[
            (
                ask("all"),
                Ok("dri/renderD130 dri/card2 dri/renderD129 dri/card1"),
            ),
            (ask("0"), Ok("dri/renderD130 dri/card2")),
            (ask("card1"), Ok("dri/renderD129 dri/card1")),
            (ask("2"), Err("no Intel GPU `2`")),
            (
                Ask {
                    caller: &[JOB, ("ZE_AFFINITY_MASK", "1.0")],
                    ..Ask::default()
                },
                Ok("dri/renderD129 dri/card1"),
            ),
        ],
    );
    let links = ask("0").of(&host).unwrap().edits.symlinks;
    let links: Vec<String> = links
        .iter()
        .map(|link| format!("{} -> {}", link.path.display(), link.target.display()))
        .collect();
    assert_eq!(
        links,
        [
            "/dev/dri/by-path/pci-0000:03:00.0-card -> ../card2",
            "/dev/dri/by-path/pci-0000:03:00.0-render -> ../renderD130",
        ]
    );
}

#[test]
fn fabrics_are_granted_as_their_descriptions_say() {
    let tree = Tree::fabrics();
    let host = tree.host();
    let rest = "efa gdrdrv infiniband knem omni slingshot xpmem";
    assert!(!rest.is_empty());
    let ib = |numbers: &[u32]| {
        let mut nodes: Vec<String> = numbers
            .iter()
            .map(|it| format!("infiniband/uverbs{it} infiniband/issm{it} infiniband/umad{it}"))
            .collect();
        nodes.push("infiniband/rdma_cm".into());
        nodes.join(" ")
    };
    // In the order of the families' names; the adapters in that of their numbers.
    let with = |infiniband: &str| {
        let shared = if infiniband.is_empty() { "" } else { " " };
        format!(
            "infiniband/uverbs3 infiniband/rdma_cm gdrdrv{shared}{} knem hfi1_0 infiniband/uverbs4 infiniband/issm4 infiniband/umad4 cxi0 cxi1 xpmem",
            infiniband.replace(" infiniband/rdma_cm", "")
        )
    };
    let device = |devices| Ask {
        devices,
        ..Ask::default()
    };
    let image = |image| Ask {
        image,
        ..Ask::default()
    };
    compare(
        &host,
        &[
            (Ask::default(), Ok(&with(&ib(&[0, 2, 1])))),
            (
                image(&[("MELLANOX_VISIBLE_DEVICES", "all")]),
                Ok(&with(&ib(&[0, 2, 1]))),
            ),
            (
                image(&[("MELLANOX_VISIBLE_DEVICES", "1")]),
                Ok(&with(&ib(&[2]))),
            ),
            (
                image(&[("MELLANOX_VISIBLE_DEVICES", "mlx5_10,0")]),
                Ok(&with(&ib(&[0, 1]))),
            ),
            (
                image(&[("MELLANOX_VISIBLE_DEVICES", "void")]),
                Ok(&with("")),
            ),
            (device(&["host/infiniband=mlx5_2"]), Ok(&with(&ib(&[2])))),
            (device(&["host/infiniband=none"]), Ok(&with(""))),
            (
                device(&["host/infiniband=mlx5_9"]),
                Err("no device `host/infiniband=mlx5_9` here; there are mlx5_0, mlx5_2, mlx5_10"),
            ),
            (
                device(&["host/infiniband=libraries"]),
                Ok(&with(&ib(&[0, 2, 1]))),
            ),
            (
                device(&["host/fuse=all"]),
                Ok(&with(&ib(&[0, 2, 1])).replace("fuse ", "").replace(
                    "infiniband/uverbs3 infiniband/rdma_cm gdrdrv",
                    "infiniband/uverbs3 infiniband/rdma_cm fuse gdrdrv",
                )),
            ),
            (device(&["host/kvm=all"]), Err("no device `host/kvm=all`")),
            (
                device(&["host/nothing=all"]),
                Err("no device `host/nothing=all`"),
            ),
            (
                device(&["host/knem=none", "host/xpmem=none"]),
                Ok(&with(&ib(&[0, 2, 1]))
                    .replace(" knem", "")
                    .replace(" xpmem", "")),
            ),
        ],
    );
}

#[test]
fn libraries_of_a_fabric_are_granted_to_who_asks() {
    let tree = Tree::fabrics();
    tree.file("/opt/rdma/libibverbs.so.1.14", "")
        .link("/opt/rdma/libibverbs.so.1", "libibverbs.so.1.14")
        .file("/usr/lib64/libibumad.so.3", "")
        .file("/usr/lib64/libibverbs.so.1", "")
        .file("/etc/libibverbs.d/mlx5.driver", "driver mlx5\n");
    let mut cache = LinkerCache::default();
    let path = b"/opt/rdma/libibverbs.so.1";
    cache.add(b"libibverbs.so.1", path, linker_cache::NATIVE[0]);
    fs::write(tree.path(linker_cache::PATH), cache.write()).unwrap();
    let host = tree.host();
    let libraries = |devices| {
        let ask = Ask {
            devices,
            ..Ask::default()
        };
        let edits = ask.of(&host).unwrap().edits;
        let libraries = edits.libraries.iter().map(|it| {
            let path = it.host_path.display();
            format!("{} {path}", it.links.join(" "))
        });
        let files = edits.mounts.iter().map(|it| it.path.display().to_string());
        libraries.chain(files).collect::<Vec<_>>()
    };
    assert_eq!(libraries(&[]), Vec::<String>::new());
    let all = libraries(&["host/infiniband=libraries", "host/infiniband=mlx5_0"]);
    let expected = [
        "libibverbs.so.1 /opt/rdma/libibverbs.so.1.14",
        "libibumad.so.3 /usr/lib64/libibumad.so.3",
        "/etc/libibverbs.d",
    ];
    assert_eq!(all, expected);
}

#[test]
fn what_is_not_granted_of_a_fabric_is_not_seen() {
    let tree = Tree::fabrics();
    let host = tree.host();
    assert!(
        Ask::default()
            .of(&host)
            .unwrap()
            .edits
            .directories
            .is_empty()
    );
    let ask = Ask {
        devices: &["host/infiniband=mlx5_2", "host/efa=none"],
        ..Ask::default()
    };
    let views = ask.of(&host).unwrap().edits.directories;
    let views: Vec<String> = views
        .iter()
        .map(|view| {
            let names: Vec<String> = view
                .entries
                .iter()
                .map(|(name, entry)| {
                    let is_link = matches!(entry, Entry::Symlink(target) if target.starts_with("../../devices"));
                    format!("{}{}", name.display(), if is_link { "" } else { "!" })
                })
                .collect();
            format!("{}: {}", view.path.display(), names.join(" "))
        })
        .collect();
    assert_eq!(
        views,
        [
            "/sys/class/infiniband: hfi1_0 mlx5_2",
            "/sys/class/infiniband_mad: issm2 issm4 umad2 umad4",
            "/sys/class/infiniband_verbs: abi_version! uverbs2 uverbs4",
        ]
    );
}

#[test]
fn an_administrator_describes_devices() {
    let tree = Tree::fabrics();
    tree.node("/dev/vendor0")
        .node("/dev/vendor1")
        .node("/dev/vendor_ctl");
    let directory = "/etc/cista/devices.d";
    tree.file(
        &format!("{directory}/vendor.toml"),
        "name = 'vendor'\ntitle = 'Vendor board'\ngrant = 'asked'\nvariable = 'VENDOR_VISIBLE_DEVICES'\n[instances]\ndirectory = '/dev'\nnames = 'vendor*'\n[[nodes]]\npath = '/dev/{instance}'\n[[nodes]]\npath = '/dev/vendor_ctl'\n",
    );
    // These take the place of what comes with the program.
    tree.file(
        &format!("{directory}/knem.toml"),
        "name = 'knem'\ntitle = 'KNEM'\ngrant = 'never'\n[[nodes]]\npath = '/dev/knem'\n",
    );
    tree.file(
        &format!("{directory}/infiniband.toml"),
        "name = 'infiniband'\ntitle = 'none'\ngrant = 'never'\n",
    );
    tree.file(&format!("{directory}/README"), "no description");
    let host = tree.host();
    let usual = "infiniband/uverbs3 infiniband/rdma_cm gdrdrv hfi1_0 infiniband/uverbs4 infiniband/issm4 infiniband/umad4 cxi0 cxi1";
    compare(
        &host,
        &[
            (Ask::default(), Ok(&format!("{usual} xpmem"))),
            (
                Ask {
                    user: &[("VENDOR_VISIBLE_DEVICES", "1")],
                    ..Ask::default()
                },
                Ok(&format!("{usual} vendor1 vendor_ctl xpmem")),
            ),
            (
                Ask {
                    devices: &["host/vendor=vendor0"],
                    ..Ask::default()
                },
                Ok(&format!("{usual} vendor0 vendor_ctl xpmem")),
            ),
            (
                Ask {
                    devices: &["host/knem=all"],
                    ..Ask::default()
                },
                Err("the administrator grants it to nobody"),
            ),
        ],
    );
    tree.file(&format!("{directory}/bad.toml"), "name = 'bad'");
    let error = Ask::default().of(&host).unwrap_err();
    assert!(
        error.contains("bad.toml") && error.contains("title"),
        "{error}"
    );
}

#[test]
fn what_cdi_describes_stays_within_the_job() {
    let tree = Tree::new();
    tree.node("/dev/nvidia0").node("/dev/nvidia1");
    let device = |number: u32| {
        format!(
            r#"{{"name":"{number}","containerEdits":{{"deviceNodes":[{{"path":"/dev/nvidia{number}"}}]}}}}"#
        )
    };
    let text = format!(
        r#"{{"cdiVersion":"0.5.0","kind":"vendor.com/gpu","devices":[{},{}]}}"#,
        device(0),
        device(1)
    );
    tree.file("/etc/cdi/gpus.json", &text);
    let job = [JOB, ("SLURM_STEP_GPUS", "0")];
    let device = |devices| Ask {
        devices,
        ..Ask::default()
    };
    let in_job = |devices| Ask {
        devices,
        caller: &job,
        ..Ask::default()
    };
    let variable = "NVIDIA_VISIBLE_DEVICES";
    let image = |image| Ask {
        image,
        ..Ask::default()
    };
    let user = |user| Ask {
        user,
        ..Ask::default()
    };
    compare(
        &tree.host(),
        &[
            (device(&["vendor.com/gpu=1"]), Ok("nvidia1")),
            (in_job(&["vendor.com/gpu=0"]), Ok("nvidia0")),
            (
                in_job(&["vendor.com/gpu=1"]),
                Err("`/dev/nvidia1` is not of this job: see `SLURM_STEP_GPUS`"),
            ),
            (image(&[(variable, "vendor.com/gpu=1")]), Ok("nvidia1")),
            // What an image asks for in vain does not keep it from being started.
            (image(&[(variable, "vendor.com/gpu=7,v/=")]), Ok("")),
            (
                user(&[(variable, "vendor.com/gpu=7")]),
                Err("vendor.com/gpu=7"),
            ),
            (
                user(&[(variable, "vendor.com/other=7")]),
                Err("vendor.com/other"),
            ),
        ],
    );
}

#[test]
fn the_descriptions_that_come_with_the_program_are_good() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/devices.d");
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let family = super::described::family::Family::parse(&text).unwrap_or_else(|error| {
            panic!("{}: {error}", path.display());
        });
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), family.name);
        count += 1;
    }
    assert_eq!(count, 10);
}
