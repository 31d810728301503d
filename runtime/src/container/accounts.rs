//! `/etc/passwd` and `/etc/group` of a container, and who the user is in it.
//!
//! Programs ask these files for names and home directories, and an image does not know the user who starts it. So, as
//! enroot does, the entries of root, nobody and the user come first, then those of the image that they do not replace.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::sys::accounts;

/// Who runs the container's program, as seen inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's entry, without the shell being checked against the image.
    pub user: accounts::User,
    /// Name of the user's group.
    pub group: Vec<u8>,
    /// Other groups that the user has inside: names and numbers.
    pub other_groups: Vec<(Vec<u8>, u32)>,
}

/// The user and group of the kernel's overflow ids: what an id shows as that has no mapping.
const NOBODY: u32 = 65534;

/// Where the name of a user stands in the simple case, and is found without the C library's name service.
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// How long a start asks for the names of groups.
const NAME_SERVICE: Duration = Duration::from_millis(5);

/// Looks the user up on the host: in the files first, since that costs a tenth of asking the name service.
///
/// A user without an entry is called by the number and lives in `/`.
#[must_use]
pub fn host_identity(uid: u32, gid: u32) -> Identity {
    let passwd = std::fs::read(PASSWD).unwrap_or_default();
    let user = lines(&passwd)
        .find_map(|line| parse_user(line).filter(|user| user.uid == uid))
        .or_else(|| accounts::user(uid))
        .unwrap_or_else(|| accounts::User {
            name: uid.to_string().into_bytes(),
            uid,
            gid,
            gecos: Vec::new(),
            home: b"/".to_vec(),
            shell: Vec::new(),
        });
    let group_file = std::fs::read(GROUP).unwrap_or_default();
    let group = lines(&group_file)
        .filter_map(parse_group)
        .find_map(|(name, number)| (number == gid).then(|| name.to_vec()))
        .or_else(|| accounts::group_name(gid))
        .unwrap_or_else(|| gid.to_string().into_bytes());
    Identity {
        user: accounts::User { uid, gid, ..user },
        group,
        other_groups: Vec::new(),
    }
}

/// Adds the other groups of the calling process, where it will have them inside. A group without a name stays a number, and so does one whose name the
/// name service does not tell soon: they are but names.
pub fn add_groups(identity: &mut Identity) {
    let groups = rustix::process::getgroups().unwrap_or_default();
    let file = std::fs::read(GROUP).unwrap_or_default();
    let of_file: HashMap<u32, &[u8]> = lines(&file)
        .filter_map(parse_group)
        .map(|(name, number)| (number, name))
        .collect();
    let deadline = Instant::now() + NAME_SERVICE;
    for group in groups.into_iter().map(rustix::process::Gid::as_raw) {
        let by_service = || (Instant::now() < deadline).then(|| accounts::group_name(group));
        let name = match of_file.get(&group) {
            Some(name) => Some(name.to_vec()),
            None => by_service().flatten(),
        };
        if let Some(name) = name.filter(|_| group != 0 && group != identity.user.gid) {
            identity.other_groups.push((name, group));
        }
    }
}

/// The user as root of a container, with the shell of the user on the host.
#[must_use]
pub fn root_identity(shell: Vec<u8>) -> Identity {
    Identity {
        user: accounts::User {
            name: b"root".to_vec(),
            uid: 0,
            gid: 0,
            gecos: b"root".to_vec(),
            home: b"/root".to_vec(),
            shell,
        },
        group: b"root".to_vec(),
        other_groups: Vec::new(),
    }
}

/// The shell of a user whose own one the image does not have: what its useradd(8) would set (`/etc/default/useradd`), or `/bin/sh`.
#[must_use]
pub fn default_shell(useradd: &[u8]) -> Vec<u8> {
    setting(useradd, b"SHELL=")
        .filter(|shell| shell.starts_with(b"/"))
        .unwrap_or(b"/bin/sh")
        .to_vec()
}

/// The value of a `NAME=value` line.
fn setting<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    lines(file).find_map(|line| line.trim_ascii().strip_prefix(name))
}

/// The content of `/etc/passwd`: our entries, then those of the image with other names.
///
/// `debian` leaves out `_apt`: apt would drop its privileges to that user, and fail, since no other user id is mapped.
#[must_use]
pub fn passwd(identity: &Identity, shell: &[u8], image: &[u8], debian: bool) -> Vec<u8> {
    let user = &identity.user;
    let mut content = Vec::with_capacity(image.len() + 256);
    let mut names: Vec<&[u8]> = vec![b"root", b"nobody"];
    content.extend_from_slice(b"root:x:0:0:root:/root:");
    content.extend_from_slice(shell);
    content.extend_from_slice(
        format!("\nnobody:x:{NOBODY}:{NOBODY}:nobody:/:/sbin/nologin\n").as_bytes(),
    );
    if user.name != b"root" {
        names.push(&user.name);
        for (field, end) in [
            (&user.name[..], b':'),
            (b"x", b':'),
            (user.uid.to_string().as_bytes(), b':'),
            (user.gid.to_string().as_bytes(), b':'),
            (&user.gecos, b':'),
            (&user.home, b':'),
            (shell, b'\n'),
        ] {
            content.extend_from_slice(field);
            content.push(end);
        }
    }
    append_others(&mut content, image, &names, debian);
    content
}

/// The content of `/etc/group`; see [`passwd`].
#[must_use]
pub fn group(identity: &Identity, image: &[u8], debian: bool) -> Vec<u8> {
    let mut content = Vec::with_capacity(image.len() + 128);
    let mut names: Vec<&[u8]> = vec![b"root", b"nogroup"];
    content.extend_from_slice(format!("root:x:0:\nnogroup:x:{NOBODY}:\n").as_bytes());
    if identity.group != b"root" {
        names.push(&identity.group);
        content.extend_from_slice(&identity.group);
        content.extend_from_slice(format!(":x:{}:\n", identity.user.gid).as_bytes());
    }
    for (name, number) in &identity.other_groups {
        // What the image calls so, or by this number, is the image's.
        let is_known = lines(image)
            .filter_map(parse_group)
            .any(|(known, of_known)| known == name || of_known == *number);
        if !is_known && !names.contains(&name.as_slice()) {
            content.extend_from_slice(name);
            content.extend_from_slice(format!(":x:{number}:").as_bytes());
            content.extend_from_slice(&identity.user.name);
            content.push(b'\n');
        }
    }
    append_others(&mut content, image, &names, debian);
    content
}

fn append_others(content: &mut Vec<u8>, image: &[u8], names: &[&[u8]], debian: bool) {
    for line in lines(image) {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        // Lines of NIS compatibility (`+`, `-`) would have the C library ask a directory that is not there.
        let odd = name.is_empty() || matches!(name[0], b'+' | b'-');
        if odd || names.contains(&name) || (debian && name == b"_apt") {
            continue;
        }
        content.extend_from_slice(line);
        content.push(b'\n');
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Name and number of a group.
fn parse_group(line: &[u8]) -> Option<(&[u8], u32)> {
    let mut fields = line.split(|&byte| byte == b':');
    Some((fields.next()?, number(fields.nth(1)?)?))
}

fn parse_user(line: &[u8]) -> Option<accounts::User> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
    let [name, _, uid, gid, gecos, home, shell] = fields[..] else {
        return None;
    };
    Some(accounts::User {
        name: name.to_vec(),
        uid: number(uid)?,
        gid: number(gid)?,
        gecos: gecos.to_vec(),
        home: home.to_vec(),
        shell: shell.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> Identity {
        Identity {
            user: accounts::User {
                name: name.into(),
                uid: 1000,
                gid: 100,
                gecos: b"A. User".to_vec(),
                home: b"/home/u".to_vec(),
                shell: b"/bin/zsh".to_vec(),
            },
            group: b"users".to_vec(),
            other_groups: Vec::new(),
        }
    }

    #[test]
    fn other_groups_follow_where_the_image_has_none_like_them() {
        let identity = Identity {
            other_groups: vec![
                (b"lab".to_vec(), 61_001),
                (b"video".to_vec(), 39),
                (b"render".to_vec(), 44),
            ],
            ..identity("u")
        };
        let image = b"root:x:0:\nvideo:x:44:\n";
        let content = String::from_utf8(group(&identity, image, false)).unwrap();
        assert_eq!(
            content,
            "root:x:0:\nnogroup:x:65534:\nusers:x:100:\nlab:x:61001:u\nvideo:x:44:\n"
        );
    }

    #[test]
    fn ours_come_first_and_replace_the_images() {
        let image = b"root:x:0:0::/:/bin/false\ndaemon:x:1:1::/:\nu:x:7:7::/:\n_apt:x:42:65534::/:\n+nis\n\nlast:x:9:9::/:";
        let content = passwd(&identity("u"), b"/bin/sh", image, true);
        assert_eq!(
            String::from_utf8(content).unwrap(),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n\
             u:x:1000:100:A. User:/home/u:/bin/sh\ndaemon:x:1:1::/:\nlast:x:9:9::/:\n"
        );
        let content = group(
            &identity("u"),
            b"root:x:0:x\nusers:x:5:\n_apt:x:1:\nwheel:x:10:\n",
            false,
        );
        assert_eq!(
            String::from_utf8(content).unwrap(),
            "root:x:0:\nnogroup:x:65534:\nusers:x:100:\n_apt:x:1:\nwheel:x:10:\n"
        );
    }

    /// A named container keeps what was generated: doing it again must not change it.
    #[test]
    fn generating_twice_gives_the_same() {
        let image = b"root:x:0:0::/:/bin/false\nbin:x:1:1::/:\n";
        let once = passwd(&identity("u"), b"/bin/sh", image, false);
        assert_eq!(passwd(&identity("u"), b"/bin/sh", &once, false), once);
        let once = group(&identity("u"), image, false);
        assert_eq!(group(&identity("u"), &once, false), once);
        let root = root_identity(b"/bin/sh".to_vec());
        let once = passwd(&root, b"/bin/sh", image, false);
        assert_eq!(once.iter().filter(|&&byte| byte == b'\n').count(), 3);
    }

    #[test]
    fn the_shell_is_the_one_that_useradd_sets() {
        for (useradd, shell) in [
            (&b""[..], &b"/bin/sh"[..]),
            (b"# SHELL=/x\nHOME=/home\nSHELL=/bin/bash\n", b"/bin/bash"),
            (b"SHELL=relative", b"/bin/sh"),
        ] {
            assert_eq!(default_shell(useradd), shell);
        }
    }
}
