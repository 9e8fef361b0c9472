//! The ids of the host that stand for those of a cell. They own nothing, so that whatever a file
//! grants to its owner or group is not for the cell.
//!
//! Root takes a range far above all accounts. Others have the range that `/etc/subuid` gives them,
//! which the programs `newuidmap` and `newgidmap` map.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Gid, Uid};
use rustix::process::{geteuid, getuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Ids of a cell: 0 to 65535.
const COUNT: u32 = 1 << 16;
/// Above what accounts, `systemd`, subordinate ids and jails use.
const FIRST: u32 = 0x7100_0000;
/// Ranges from there on, below the ids that some file systems take for negative. Two cells that
/// come to share one still see nothing of each other.
const RANGES: u32 = 0xe00;

const TOOLS: [&str; 2] = ["newuidmap", "newgidmap"];
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// There are no ids for a cell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdsError {
    /// Root of a user namespace, as in some containers.
    #[error("this root is one of a user namespace that has no {COUNT} ids to give away")]
    FewIds,
    /// The program that maps ids for users is not there.
    #[error("{0}, which lets a user have more than one id, is not there")]
    NoTool(&'static str),
    /// The user has no ids to map.
    #[error("{file} gives no {COUNT} ids to {user}")]
    NoRange {
        /// The file.
        file: &'static str,
        /// The user's name.
        user: String,
    },
}

impl IdsError {
    /// What to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::FewIds => "run it in a container that has all ids, or on the host".into(),
            Self::NoTool(_) => "install it (Debian: apt install uidmap)".into(),
            Self::NoRange { user, .. } => format!(
                "add them: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \
                 {user}"
            ),
        }
    }
}

/// Whether there are ids for a cell.
///
/// # Errors
/// `IdsError`.
pub fn check_ids() -> Result<(), IdsError> {
    Ids::find().map(drop)
}

/// A range of ids.
#[derive(Debug)]
pub(crate) enum Ids {
    /// Mapped by root, who may.
    Root { first: u32 },
    /// Mapped by the two programs, which may for the user.
    Subordinate { uids: u32, gids: u32 },
}

impl Ids {
    pub(crate) fn find() -> Result<Self, IdsError> {
        if geteuid().is_root() {
            let first = FIRST + std::process::id() % RANGES * COUNT;
            let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            return if maps(&map, first) {
                Ok(Self::Root { first })
            } else {
                Err(IdsError::FewIds)
            };
        }
        if let Some(missing) = TOOLS.into_iter().find(|name| tool(name).is_none()) {
            return Err(IdsError::NoTool(missing));
        }
        let (uid, user) = (getuid().as_raw(), user_name());
        let range = |file: &'static str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let missing = || IdsError::NoRange { file, user: user.clone() };
            range_of(&text, &user, uid).ok_or_else(missing)
        };
        Ok(Self::Subordinate { uids: range("/etc/subuid")?, gids: range("/etc/subgid")? })
    }

    /// Maps them for a process that was born into a user namespace of its own.
    pub(crate) fn map(&self, pid: i32) -> io::Result<()> {
        match self {
            Self::Root { first } => {
                let map = format!("0 {first} {COUNT}");
                fs::write(format!("/proc/{pid}/gid_map"), &map)?;
                fs::write(format!("/proc/{pid}/uid_map"), &map)
            }
            Self::Subordinate { uids, gids } => {
                for (name, first) in [(TOOLS[0], uids), (TOOLS[1], gids)] {
                    let program = tool(name).ok_or(io::ErrorKind::NotFound)?;
                    let arguments = [pid.to_string(), "0".into(), first.to_string()];
                    let done = Command::new(program)
                        .args(arguments)
                        .arg(COUNT.to_string())
                        .env_clear()
                        .output()?;
                    if !done.status.success() {
                        let words = String::from_utf8_lossy(&done.stderr).trim().to_owned();
                        return Err(io::Error::other(format!("{name}: {words}")));
                    }
                }
                Ok(())
            }
        }
    }

    /// In the keeper: from root to the user that the inner process is to the host. No other could
    /// kill that, which the kernel checks even where it sends the signal by itself at the end of
    /// a parent.
    pub(crate) fn become_outer(&self) -> rustix::io::Result<()> {
        let Self::Root { first } = self else { return Ok(()) };
        become_id(*first)
    }

    pub(crate) fn are_mapped_by_root(&self) -> bool {
        matches!(self, Self::Root { .. })
    }
}

/// Takes a user and a group of this number, and no other groups.
pub(crate) fn become_id(id: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_groups(&[])?;
    set_thread_res_uid(uid, uid, uid)
}

fn tool(name: &str) -> Option<std::path::PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists())
}

/// Whether all ids of a range from `first` on exist by this map, of lines
/// `inside outside count` (user_namespaces(7)).
fn maps(map: &str, first: u32) -> bool {
    let last = u64::from(first) + u64::from(COUNT);
    map.lines().any(|line| {
        let numbers: Vec<u64> =
            line.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
        let [inside, _, count] = numbers[..] else { return false };
        inside <= first.into() && last <= inside + count
    })
}

/// The user's name in `/etc/passwd`; the number where there is none.
fn user_name() -> String {
    let uid = getuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or(uid)
}

/// The first range of the user's that is long enough, of lines `user:first:count` (subuid(5)).
fn range_of(text: &str, user: &str, uid: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let who = fields.next()?;
        let (first, count): (u32, u32) =
            (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        let is_ours = who == user || who == uid.to_string();
        (is_ours && count >= COUNT).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_s_root_has_all_ids() {
        assert!(maps("         0          0 4294967295\n", FIRST));
    }

    #[test]
    fn root_of_a_container_may_have_too_few() {
        assert!(!maps("0 100000 65536\n", FIRST));
        assert!(!maps("", FIRST));
    }

    #[test]
    fn the_last_range_ends_below_the_negative_ids() {
        assert!(u64::from(FIRST) + u64::from(RANGES) * u64::from(COUNT) <= 1 << 31);
    }

    #[test]
    fn a_range_is_found_by_name_and_by_number() {
        let text = "other:1:65536\nme:5:10\nme:100000:65536\n1000:300000:65536\n";
        assert_eq!(range_of(text, "me", 7), Some(100_000));
        assert_eq!(range_of(text, "nobody", 1000), Some(300_000));
        assert_eq!(range_of(text, "nobody", 7), None);
    }

    #[test]
    fn what_is_missing_comes_with_what_to_do() {
        let error = IdsError::NoRange { file: "/etc/subuid", user: "me".into() };
        assert_eq!(error.to_string(), "/etc/subuid gives no 65536 ids to me");
        assert!(error.remedy().ends_with("100000-165535 me"));
    }
}
