//! `sandforge cp`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use client::api::{
    Code, FileInfo, FileKind, FileMode, ListFilesQuery, PathQuery, ReadQuery, StatQuery,
    TarInQuery, WriteQuery,
};
use client::{Client, Download, Upload};
use globset::GlobBuilder;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::SyncIoBridge;
use workspace::{OutsideLinks, PackOptions, UnpackOptions};

use super::Context;
use crate::connection;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::Line;

/// What may be on the way between a thread that walks files and the network.
const AHEAD: usize = 256 << 10;
/// What makes a path a pattern.
const WILDCARDS: [char; 4] = ['*', '?', '[', '{'];
/// Most paths that a pattern may stand for.
const MAX_MATCHES: usize = 10_000;
/// More would hide everything else.
const MAX_TOLD: usize = 10;

/// Copy files and directories into a sandbox or out of it
#[derive(Args)]
#[command(override_usage = "sandforge cp [OPTIONS] FROM... TO")]
#[command(after_help = "\
Examples:
  sandforge cp notes.txt box:/workspace/
  sandforge cp ./src box:/workspace/src          a directory, with all that is in it
  sandforge cp box:/workspace/results ./results
  sandforge cp 'box:/workspace/*.log' box:/workspace/out ./results
                                                 several, to a directory; the quotes are for your shell
  sandforge cp box:/etc/os-release -             to stdout; a directory comes as a tar
  echo hi | sandforge cp - box:/tmp/hi           from stdin

What lies in a directory that is there is replaced, as `cp -r` does; nothing is removed. Links stay
links; those that come out and lead out of the directory are refused.")]
pub(crate) struct CopyArgs {
    /// Where from, and last where to: paths of this computer, NAME:PATH in a sandbox, or - for stdin
    /// or stdout
    ///
    /// In a PATH to copy from, `*`, `?`, `[a-z]` and `{a,b}` stand for names, as in a shell. Several
    /// things go to a directory that is there.
    #[arg(value_name = "PATH", num_args = 2.., required = true)]
    places: Vec<OsString>,

    /// As this user of the sandbox: NAME or UID, either with :GROUP [default: uid 1000, not root]
    #[arg(short, long)]
    user: Option<String>,

    /// Leave out what .gitignore files name when copying in
    #[arg(long)]
    gitignore: bool,

    /// Leave out symbolic links that lead out of the directory when copying out
    #[arg(long)]
    leave_out_links: bool,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Our stdin or stdout.
    Stream,
    Host(PathBuf),
    Sandbox {
        name: String,
        path: String,
    },
}

impl Place {
    /// As scp has it: a colon before any slash makes it a sandbox's.
    fn parse(text: &OsStr) -> Result<Self, Failure> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/');
        let Some(colon) = colon.filter(|at| slash.is_none_or(|slash| at < &slash)) else {
            return Ok(Self::Host(PathBuf::from(text)));
        };
        let utf8 = text.to_str().ok_or_else(|| Failure::usage(format!("{text:?} is not UTF-8")))?;
        let (name, path) = (&utf8[..colon], &utf8[colon + 1..]);
        if name.is_empty() || !path.starts_with('/') {
            return Err(Failure::usage(format!("{text:?} is not NAME:PATH"))
                .help("PATH is absolute, such as box:/workspace/notes.txt; write ./a:b for a file of that name"));
        }
        Ok(Self::Sandbox { name: name.to_owned(), path: path.to_owned() })
    }
}

/// Where in which sandbox.
struct There<'a> {
    client: &'a Client,
    name: &'a str,
    path: &'a str,
    user: Option<String>,
}

impl CopyArgs {
    pub(crate) fn run(self, context: &Context) -> Result<u8, Failure> {
        let places: Result<Vec<_>, _> = self.places.iter().map(|text| Place::parse(text)).collect();
        let mut from = places?;
        let to = from.pop().unwrap_or(Place::Stream);
        let apart = |from: &Place| {
            matches!(from, Place::Sandbox { .. }) != matches!(to, Place::Sandbox { .. })
        };
        if !from.iter().all(apart) {
            return Err(Failure::usage("one of the two must be in a sandbox, and one must not")
                .help("write NAME:PATH for what is in a sandbox"));
        }
        let mut line = Line::new(context.verbosity);
        connection::ask(async |client| {
            let mut sources = Vec::new();
            for place in from {
                match place {
                    Place::Sandbox { name, path } => {
                        let paths = self.there(client, &name, &path).matching().await?;
                        let found = |path| Place::Sandbox { name: name.clone(), path };
                        sources.extend(paths.into_iter().map(found));
                    }
                    other => sources.push(other),
                }
            }
            if sources.len() > 1 && !self.is_directory(client, &to).await? {
                return Err(Failure::usage("several things go to a directory that is there")
                    .help("make the directory first, or name one thing"));
            }
            for source in &sources {
                match (source, &to) {
                    (Place::Stream, Place::Sandbox { name, path }) => {
                        let content = Upload::reader(tokio::io::stdin());
                        self.there(client, name, path).write(content, None).await?;
                    }
                    (Place::Host(host), Place::Sandbox { name, path }) => {
                        self.copy_in(host, self.there(client, name, path), &mut line).await?;
                    }
                    (Place::Sandbox { name, path }, Place::Host(host)) => {
                        self.copy_out(self.there(client, name, path), host, &mut line).await?;
                    }
                    (Place::Sandbox { name, path }, _) => {
                        self.there(client, name, path).print().await?
                    }
                    // Seen to above.
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(0)
    }

    fn there<'a>(&self, client: &'a Client, name: &'a str, path: &'a str) -> There<'a> {
        There { client, name, path, user: self.user.clone() }
    }

    /// Whether several things can go there.
    async fn is_directory(&self, client: &Client, to: &Place) -> Result<bool, Failure> {
        match to {
            Place::Stream => Ok(false),
            Place::Host(host) => Ok(host.is_dir()),
            Place::Sandbox { name, path } => self.there(client, name, path).is_directory().await,
        }
    }

    async fn copy_in(
        &self,
        host: &Path,
        mut there: There<'_>,
        line: &mut Line,
    ) -> Result<(), Failure> {
        let unreadable =
            |error: io::Error| Failure::usage(format!("cannot read {host:?}")).because(&error);
        let metadata = fs::metadata(host).map_err(unreadable)?;
        // `dir/.` is what is in it, and not the directory itself.
        let content = host.as_os_str().as_bytes().ends_with(b"/.");
        let target = match host.file_name() {
            Some(name) if !content && there.is_directory().await? => {
                let name = name.to_str().ok_or_else(|| {
                    Failure::usage(format!("the name of {host:?} is not UTF-8"))
                        .help("name the file in the sandbox: NAME:/workspace/some-name")
                })?;
                format!("{}/{name}", there.path.trim_end_matches('/'))
            }
            _ => there.path.to_owned(),
        };
        there.path = &target;
        if !metadata.is_dir() {
            let file = tokio::fs::File::open(host).await.map_err(unreadable)?;
            let mode = FileMode::new(metadata.mode() & 0o777);
            return there.write(Upload::reader(file), Some(mode)).await;
        }
        let (writer, reader) = tokio::io::duplex(AHEAD);
        let (path, gitignore) = (host.to_owned(), self.gitignore);
        let packing = tokio::task::spawn_blocking(move || {
            let mut writer = SyncIoBridge::new(writer);
            let options = PackOptions { gitignore, ..PackOptions::default() };
            let packed = workspace::pack(&path, &options, &mut writer, &mut |_| {});
            // Where the other end is gone, the answer says why.
            let _ = writer.shutdown();
            packed
        });
        let query = TarInQuery { path: target.clone(), user: there.user.clone(), read_only: false };
        let sent = there.client.unpack_files(there.name, &query, Upload::reader(reader)).await;
        let packed = packing.await.map_err(|error| Failure::failed(error.to_string()))?;
        match (packed, sent) {
            // The server gave up first, and that is why the thread could not go on.
            (Err(workspace::PackError::Send(_)), Err(error)) => Err(error.into()),
            (Err(error), _) => {
                Err(Failure::failed(format!("cannot copy {host:?}")).because(&error))
            }
            (Ok(_), Err(error)) => Err(error.into()),
            (Ok(packed), Ok(_)) => {
                for (name, why) in packed.left_out_names.iter().take(MAX_TOLD) {
                    line.notice(&format!("not copied: {name}: {why:?}"));
                }
                Ok(())
            }
        }
    }

    async fn copy_out(
        &self,
        there: There<'_>,
        host: &Path,
        line: &mut Line,
    ) -> Result<(), Failure> {
        let info = there.info().await?.ok_or_else(|| {
            Failure::new(
                Kind::NotFound,
                format!("there is no {:?} in {:?}", there.path, there.name),
            )
        })?;
        let target = match there.path.trim_end_matches('/').rsplit('/').next() {
            Some(name) if host.is_dir() && !matches!(name, "" | "." | "..") => host.join(name),
            _ => host.to_owned(),
        };
        if info.kind != FileKind::Directory {
            let download = there.read().await?;
            return save(download, &target, info.mode.bits() & 0o777).await;
        }
        let query = PathQuery { path: there.path.to_owned(), user: there.user.clone() };
        let mut download = there.client.pack_files(there.name, &query).await?;
        let (mut writer, reader) = tokio::io::duplex(AHEAD);
        let outside_links = match self.leave_out_links {
            true => OutsideLinks::LeaveOut,
            false => OutsideLinks::Refuse,
        };
        let destination = target.clone();
        let unpacking = tokio::task::spawn_blocking(move || {
            let merge = destination.is_dir();
            let options = UnpackOptions { outside_links, merge, ..UnpackOptions::default() };
            workspace::unpack(&mut SyncIoBridge::new(reader), &destination, &options, &mut |_| {})
        });
        let mut broken = None;
        loop {
            match download.next().await {
                Ok(Some(piece)) => {
                    // Whoever stopped reading says why below.
                    if tokio::io::AsyncWriteExt::write_all(&mut writer, &piece).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(writer);
        let unpacked = unpacking.await.map_err(|error| Failure::failed(error.to_string()))?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        let unpacked = unpacked.map_err(|error| {
            Failure::failed(format!("cannot copy to {target:?}")).because(&error)
        })?;
        for held in unpacked.held_back.iter().take(MAX_TOLD) {
            line.notice(&format!("not copied: {held}"));
        }
        Ok(())
    }
}

impl There<'_> {
    /// What is there, if anything is.
    async fn info(&self) -> Result<Option<FileInfo>, Failure> {
        let query = StatQuery { path: self.path.to_owned(), user: self.user.clone(), follow: true };
        match self.client.stat_file(self.name, &query).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.code() == Some(Code::FileNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The paths that this one stands for: itself, unless there are wildcards in it and nothing is
    /// called so. Names that begin with a dot are matched by a pattern that begins with one.
    async fn matching(&self) -> Result<Vec<String>, Failure> {
        if !self.path.contains(WILDCARDS) || self.info().await?.is_some() {
            return Ok(vec![self.path.to_owned()]);
        }
        let mut found = vec![String::new()];
        for segment in self.path.split('/').filter(|segment| !segment.is_empty()) {
            if !segment.contains(WILDCARDS) {
                found.iter_mut().for_each(|path| *path = format!("{path}/{segment}"));
                continue;
            }
            let pattern = GlobBuilder::new(segment).literal_separator(true).build();
            let pattern = pattern
                .map_err(|error| {
                    Failure::usage(format!("{segment:?} is no pattern")).because(&error)
                })?
                .compile_matcher();
            let mut next = Vec::new();
            for directory in &found {
                let fits = |name: &str| {
                    pattern.is_match(name) && (segment.starts_with('.') || !name.starts_with('.'))
                };
                let names = self.names(directory).await?;
                let fitting = names.into_iter().filter(|name| fits(name));
                next.extend(fitting.map(|name| format!("{directory}/{name}")));
                if next.len() > MAX_MATCHES {
                    return Err(Failure::usage(format!(
                        "{:?} stands for more than {MAX_MATCHES} paths",
                        self.path
                    ))
                    .help("copy the directory"));
                }
            }
            found = next;
        }
        let mut there = Vec::with_capacity(found.len());
        for path in found {
            if (There { path: &path, user: self.user.clone(), ..*self }).info().await?.is_some() {
                there.push(path);
            }
        }
        match there.is_empty() {
            false => Ok(there),
            true => Err(Failure::new(
                Kind::NotFound,
                format!("nothing in {:?} is like {:?}", self.name, self.path),
            )),
        }
    }

    /// What is in a directory; nothing where it is none.
    async fn names(&self, directory: &str) -> Result<Vec<String>, Failure> {
        let path = if directory.is_empty() { "/" } else { directory };
        let there = There { path, user: self.user.clone(), ..*self };
        if !there.info().await?.is_some_and(|info| info.kind == FileKind::Directory) {
            return Ok(Vec::new());
        }
        let query = ListFilesQuery {
            path: path.to_owned(),
            user: self.user.clone(),
            ..ListFilesQuery::default()
        };
        let list = self.client.list_files(self.name, &query).await?;
        if list.truncated {
            return Err(Failure::failed(format!("there is too much in {path:?} to look through"))
                .help("copy the directory"));
        }
        let names = list.entries.iter().map(|entry| std::str::from_utf8(entry.path.as_bytes()));
        Ok(names.flatten().map(str::to_owned).collect())
    }

    /// Whether a directory is there. A slash at the end asks for one.
    async fn is_directory(&self) -> Result<bool, Failure> {
        if self.path.ends_with('/') {
            return Ok(true);
        }
        Ok(self.info().await?.is_some_and(|info| info.kind == FileKind::Directory))
    }

    async fn write(&self, content: Upload, mode: Option<FileMode>) -> Result<(), Failure> {
        let query = WriteQuery {
            path: self.path.to_owned(),
            user: self.user.clone(),
            mode,
            ..WriteQuery::default()
        };
        self.client.write_file(self.name, &query, content).await?;
        Ok(())
    }

    async fn read(&self) -> Result<Download, Failure> {
        let query = ReadQuery { path: self.path.to_owned(), user: self.user.clone() };
        Ok(self.client.read_file(self.name, &query).await?)
    }

    /// To stdout: a file's content, or a directory's tar.
    async fn print(&self) -> Result<(), Failure> {
        let mut download = match self.info().await? {
            Some(FileInfo { kind: FileKind::Directory, .. }) => {
                let query = PathQuery { path: self.path.to_owned(), user: self.user.clone() };
                self.client.pack_files(self.name, &query).await?
            }
            _ => self.read().await?,
        };
        let mut sink = output::Stream::stdout(false)
            .map_err(|error| Failure::failed("cannot start a thread").because(&error))?;
        let written = async {
            while let Some(piece) = download.next().await? {
                if let Err(error) = sink.write(piece.into()).await {
                    return Ok(Err(error));
                }
            }
            Ok::<_, client::Error>(sink.finish().await)
        };
        match written.await? {
            Err(error) if !output::is_closed(&error) => {
                Err(Failure::failed("cannot write to stdout").because(&error))
            }
            _ => Ok(()),
        }
    }
}

/// A file as a whole, or not at all.
async fn save(download: Download, target: &Path, mode: u32) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::failed(format!("cannot write {target:?}")).because(&error);
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut staged = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    let mut reader = download.into_reader();
    let mut piece = vec![0; 64 << 10];
    loop {
        match reader.read(&mut piece).await {
            Ok(0) => break,
            Ok(count) => staged.write_all(&piece[..count]).map_err(failed)?,
            Err(error) => {
                return Err(Failure::failed("the connection to the server broke").because(&error));
            }
        }
    }
    let file: &File = staged.as_file();
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    staged.persist(target).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Option<Place> {
        Place::parse(OsStr::new(text)).ok()
    }

    #[test]
    fn a_colon_before_any_slash_makes_it_a_sandboxs() {
        let there =
            |name: &str, path: &str| Some(Place::Sandbox { name: name.into(), path: path.into() });
        assert_eq!(place("box:/a b"), there("box", "/a b"));
        assert_eq!(place("box:/a:b"), there("box", "/a:b"));
        assert_eq!(place("./a:b"), Some(Place::Host("./a:b".into())));
        assert_eq!(place("/tmp/a:b"), Some(Place::Host("/tmp/a:b".into())));
        assert_eq!(place("-"), Some(Place::Stream));
        assert_eq!(place("./-"), Some(Place::Host("./-".into())));
    }

    #[test]
    fn a_path_in_a_sandbox_is_absolute() {
        for text in ["box:", "box:a", ":/a"] {
            assert_eq!(place(text), None, "{text}");
        }
    }
}
