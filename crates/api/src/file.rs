//! Files of a guest. Content and tar streams are raw bytes; these are the rest.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{IntoParams, ToSchema};
use wire::op;
use wire::text::Text;

use crate::bound::{self, Depth, GuestPath, GuestPathBytes, GuestUser, Mode, WritePlace};
use crate::object::objects;
use crate::{Problem, Timestamp, Validate};

/// Permission bits, `0o7777` at most; in JSON and queries three or four octal digits: `"0644"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileMode(u32);

impl FileMode {
    /// From the bits; those above `0o7777` are dropped.
    pub fn new(bits: u32) -> Self {
        Self(bits & 0o7777)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for FileMode {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        Mode::check("mode", text)?;
        u32::from_str_radix(text, 8)
            .map(Self)
            .map_err(|error| Problem::invalid("mode", error.to_string()))
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Where written bytes go; in queries `replace`, `append`, or the number of the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WriteAt {
    /// The file is replaced as a whole when all bytes have arrived.
    #[default]
    Replace,
    /// After the last byte.
    Append,
    /// From this byte on, leaving the rest.
    Offset(u64),
}

impl fmt::Display for WriteAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace => f.write_str("replace"),
            Self::Append => f.write_str("append"),
            Self::Offset(first) => first.fmt(f),
        }
    }
}

impl FromStr for WriteAt {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        WritePlace::check("at", text)?;
        Ok(match text {
            "replace" => Self::Replace,
            "append" => Self::Append,
            number => Self::Offset(
                number.parse().map_err(|_| Problem::invalid("at", "must be a number"))?,
            ),
        })
    }
}

impl Serialize for WriteAt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WriteAt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl From<WriteAt> for op::WriteAt {
    fn from(at: WriteAt) -> Self {
        match at {
            WriteAt::Replace => Self::Replace,
            WriteAt::Append => Self::Append,
            WriteAt::Offset(first) => Self::Offset(first),
        }
    }
}

macro_rules! path_queries {
    ($($(#[$doc:meta])* $name:ident { $($fields:tt)* } $validate:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            /// Absolute path of the guest, in UTF-8.
            #[param(value_type = bound::GuestPath)]
            pub path: String,
            /// As whom: `name`, `uid`, or either with `:group`; the image's uid 1000 when absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[param(value_type = Option<bound::GuestUser>, nullable = false)]
            pub user: Option<String>,
            $($fields)*
        }

        impl Validate for $name {
            fn validate(&self) -> Result<(), Problem> {
                GuestPath::check("path", &self.path)?;
                GuestUser::check_some("user", self.user.as_deref())?;
                let more: fn(&Self) -> Result<(), Problem> = $validate;
                more(self)
            }
        }
    )*};
}

path_queries! {
    /// A file's content; a Range header asks for a part of it.
    ReadQuery {} |_| Ok(());
    /// A file or directory, or a tar of it.
    PathQuery {} |_| Ok(());
    /// A file's new content, which is the body.
    WriteQuery {
        /// Where the bytes go: `replace`, which is the default, `append`, or the number of the
        /// first byte.
        #[serde(default)]
        #[param(value_type = bound::WritePlace, required = false)]
        pub at: WriteAt,
        /// Permission bits of a new file; 0644 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(value_type = Option<bound::Mode>, nullable = false)]
        pub mode: Option<FileMode>,
        /// Make missing parent directories.
        #[serde(default)]
        pub parents: bool,
    } |_| Ok(());
    /// A file's metadata.
    StatQuery {
        /// Follow a final symbolic link.
        #[serde(default)]
        pub follow: bool,
    } |_| Ok(());
    /// A directory's entries.
    ListFilesQuery {
        /// Levels below; 1, the directory alone, when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(value_type = Option<bound::Depth>, nullable = false)]
        pub depth: Option<u32>,
    } |query| Depth::check_some("depth", query.depth);
    /// Changes below a path, as server-sent events `change` of [`WatchEvent`].
    WatchQuery {
        /// Directories below too, also ones made later.
        #[serde(default)]
        pub recursive: bool,
    } |_| Ok(());
    /// Unpacks a tar, which is the body, below a directory that is made if missing.
    TarInQuery {
        /// Drop every permission to write.
        #[serde(default)]
        pub read_only: bool,
    } |_| Ok(());
}

/// How much went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transferred {
    /// Bytes of content.
    pub bytes: u64,
    /// Files, directories and links, of a tar.
    pub entries: u64,
}

impl From<op::Transferred> for Transferred {
    fn from(op::Transferred { bytes, entries }: op::Transferred) -> Self {
        Self { bytes, entries }
    }
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

impl From<op::FileKind> for FileKind {
    fn from(kind: op::FileKind) -> Self {
        match kind {
            op::FileKind::File => Self::File,
            op::FileKind::Directory => Self::Directory,
            op::FileKind::Symlink => Self::Symlink,
            op::FileKind::Other => Self::Other,
        }
    }
}

/// A file's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// As asked for; relative to the listed directory in a listing.
    #[schema(value_type = bound::Bytes)]
    pub path: Text,
    /// What it is.
    pub kind: FileKind,
    /// In bytes.
    pub size: u64,
    /// Permission bits.
    #[schema(value_type = bound::Mode)]
    pub mode: FileMode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was last modified.
    pub modified_at: Timestamp,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Bytes>)]
    pub target: Option<Text>,
}

impl From<op::FileInfo> for FileInfo {
    fn from(info: op::FileInfo) -> Self {
        Self {
            path: info.path,
            kind: info.kind.into(),
            size: info.size,
            mode: FileMode::new(info.mode),
            uid: info.uid,
            gid: info.gid,
            modified_at: Timestamp::from_unix_ms(info.mtime_ms),
            target: info.target,
        }
    }
}

/// A directory's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileList {
    /// In the guest's order.
    pub entries: Vec<FileInfo>,
    /// There are more than the 10,000 that one answer has: list the directories below, or read a
    /// tar.
    pub truncated: bool,
}

impl FileList {
    /// Most entries of one answer.
    pub const MAX: usize = 10_000;
}

/// Makes a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct MakeDirectory {
    /// Absolute path.
    #[schema(value_type = bound::GuestPathBytes)]
    pub path: Text,
    /// Make missing parents, and accept one that is there.
    #[serde(default)]
    pub parents: bool,
    /// Permission bits; 0755 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::Mode>)]
    pub mode: Option<FileMode>,
    /// As whom; the image's uid 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::GuestUser>)]
    pub user: Option<String>,
}

impl Validate for MakeDirectory {
    fn validate(&self) -> Result<(), Problem> {
        GuestPathBytes::check("path", &self.path)?;
        GuestUser::check_some("user", self.user.as_deref())
    }
}

/// Moves a file or directory within one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct MoveFile {
    /// Absolute path.
    #[schema(value_type = bound::GuestPathBytes)]
    pub from: Text,
    /// Absolute path.
    #[schema(value_type = bound::GuestPathBytes)]
    pub to: Text,
    /// Replace what is there.
    #[serde(default)]
    pub replace: bool,
    /// As whom; the image's uid 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bound::GuestUser>)]
    pub user: Option<String>,
}

impl Validate for MoveFile {
    fn validate(&self) -> Result<(), Problem> {
        GuestPathBytes::check("from", &self.from)?;
        GuestPathBytes::check("to", &self.to)?;
        GuestUser::check_some("user", self.user.as_deref())
    }
}

/// One change below a watched path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WatchEvent {
    /// The watches are in place: what happens from now on is told.
    Ready,
    /// Something came to be, or was moved in.
    Created {
        /// Relative to the watched path.
        #[schema(value_type = bound::Bytes)]
        path: Text,
    },
    /// Content or metadata changed.
    Modified {
        /// Relative to the watched path.
        #[schema(value_type = bound::Bytes)]
        path: Text,
    },
    /// Something went, or was moved out.
    Removed {
        /// Relative to the watched path.
        #[schema(value_type = bound::Bytes)]
        path: Text,
    },
    /// Changes were too many to be told: look again at everything.
    Overflow,
}

impl From<op::WatchEvent> for WatchEvent {
    fn from(event: op::WatchEvent) -> Self {
        match event {
            op::WatchEvent::Ready => Self::Ready,
            op::WatchEvent::Created { path } => Self::Created { path },
            op::WatchEvent::Modified { path } => Self::Modified { path },
            op::WatchEvent::Removed { path } => Self::Removed { path },
            op::WatchEvent::Overflow => Self::Overflow,
        }
    }
}

objects!(MakeDirectory, MoveFile);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::parse_query;

    #[test]
    fn a_mode_is_octal_text() {
        assert_eq!(FileMode::new(0o644).to_string(), "0644");
        assert_eq!("755".parse(), Ok(FileMode::new(0o755)));
        for text in ["", "8", "64", "00644", "rwx", "+644"] {
            assert!(text.parse::<FileMode>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<FileMode>("420").is_err());
    }

    #[test]
    fn bytes_go_to_one_of_three_places() {
        let at = |query: &str| parse_query::<WriteQuery>(query).map(|query| query.at).ok();
        assert_eq!(at("path=/a"), Some(WriteAt::Replace));
        assert_eq!(at("path=/a&at=append"), Some(WriteAt::Append));
        assert_eq!(at("path=/a&at=4"), Some(WriteAt::Offset(4)));
        for query in ["path=/a&at=-1", "path=/a&at=start", "path=/a&at=9999999999999999"] {
            assert_eq!(at(query), None, "{query}");
        }
    }

    #[test]
    fn a_path_is_needed_and_absolute() {
        for query in ["", "path=", "path=a", "path=/a%00", "path=/a&path=/b", "path=/a&x=1"] {
            assert!(parse_query::<PathQuery>(query).is_err(), "{query}");
        }
        assert_eq!(parse_query::<PathQuery>("path=%2Fa%20b").unwrap().path, "/a b");
    }

    #[test]
    fn a_path_that_is_not_utf8_is_refused_in_a_query() {
        assert!(parse_query::<PathQuery>("path=/%ff").is_err());
    }

    #[test]
    fn each_bound_names_its_field() {
        let mkdir: MakeDirectory = serde_json::from_value(json!({"path": "a"})).unwrap();
        assert_eq!(mkdir.validate().unwrap_err().field(), Some("path"));
        let moved: MoveFile = serde_json::from_value(json!({"from": "/a", "to": "b"})).unwrap();
        assert_eq!(moved.validate().unwrap_err().field(), Some("to"));
        assert!(serde_json::from_value::<MoveFile>(json!({"from": "/a"})).is_err());
    }

    proptest! {
        #[test]
        fn every_mode_survives_the_round_trip(bits in 0_u32..=0o7777) {
            let mode = FileMode::new(bits);
            prop_assert_eq!(mode.to_string().parse::<FileMode>(), Ok(mode));
        }
    }
}
