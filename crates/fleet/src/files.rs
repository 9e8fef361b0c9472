//! Files of a sandbox. What goes through is streamed: nothing here holds a file.

use access::Caller;
use api::{
    FileInfo, FileList, ListFilesQuery, MakeDirectory, MoveFile, Operation, PathQuery, ReadQuery,
    StatQuery, TarInQuery, Transferred, Validate as _, WatchEvent, WatchQuery, WriteAt, WriteQuery,
};
use serde_json::{Value, json};
use supervisor::wire::op::{self, Operation as GuestOperation};
use supervisor::wire::text::Text;
use supervisor::{Call, Input, Output};

use crate::config::Provenance;
use crate::ledger::Batch;
use crate::manager::Manager;
use crate::record::Tell as _;
use crate::{Error, record};

/// Permission bits of a new file, or directory, when the request does not say.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// Longest line of a listing or a watch: two paths and some numbers.
const MAX_LINE: usize = 64 << 10;

/// What comes out of a sandbox. Dropping it ends the operation.
#[derive(Debug)]
pub struct Download<O> {
    call: Call<O>,
    output: Output,
}

/// What goes into a sandbox. Dropping it ends the operation, and nothing half-written is left
/// where it replaces a file.
#[derive(Debug)]
pub struct Upload<O> {
    call: Call<O>,
    input: Input,
    manager: std::sync::Arc<Manager>,
    entry: audit::Entry,
}

/// Changes below a path. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    lines: Lines,
    _call: Call<op::Watch>,
    _input: Input,
}

impl<O: GuestOperation<Reply = op::Transferred>> Download<O> {
    /// The next bytes, or nothing at the end.
    ///
    /// # Errors
    /// `Guest`: what came is not all.
    pub async fn read(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.output.read().await.map_err(Error::Guest)
    }

    /// How much it was.
    ///
    /// # Errors
    /// `Guest`.
    pub async fn finish(self) -> Result<Transferred, Error> {
        Ok(self.call.reply().await.map_err(Error::Guest)?.into())
    }
}

impl<O: GuestOperation<Reply = op::Transferred>> Upload<O> {
    /// Sends all of the bytes, as fast as the guest takes them.
    ///
    /// # Errors
    /// `Guest` where the sandbox is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.input.write(bytes).await.map_err(Error::Guest)
    }

    /// Says that this was all, and waits until it is there.
    ///
    /// # Errors
    /// `Guest`; nothing was replaced then.
    pub async fn finish(self) -> Result<Transferred, Error> {
        self.input.finish();
        let reply = self.call.reply().await.map_err(Error::Guest);
        self.manager.told(self.entry, &reply).await?;
        Ok(reply?.into())
    }
}

impl Watch {
    /// The next change; nothing when the watch has ended.
    ///
    /// # Errors
    /// `Guest`.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, Error> {
        let Some(line) = self.lines.next().await? else { return Ok(None) };
        let event: op::WatchEvent = parse(&line)?;
        Ok(Some(event.into()))
    }
}

/// An output of JSON lines.
#[derive(Debug)]
struct Lines {
    output: Output,
    rest: Vec<u8>,
    is_over: bool,
}

impl Lines {
    fn new(output: Output) -> Self {
        Self { output, rest: Vec::new(), is_over: false }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.is_over {
                return Ok(None);
            }
            if self.rest.len() > MAX_LINE {
                return Err(unreadable());
            }
            match self.output.read().await.map_err(Error::Guest)? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None => self.is_over = true,
            }
        }
    }
}

fn unreadable() -> Error {
    let words = "a line of its listing is not readable";
    Error::Guest(supervisor::LinkError::Protocol(words.into()))
}

fn parse<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(line).map_err(|_| unreadable())
}

fn text(field: &str, value: String) -> Result<Text, Error> {
    Text::new(value).map_err(|error| api::Problem::invalid(field, error.to_string()).into())
}

fn user(user: Option<String>) -> Result<Option<Text>, Error> {
    user.map(|user| text("user", user)).transpose()
}

impl Manager {
    /// Starts an operation of the guest; one that changes something is recorded first.
    async fn call<O: GuestOperation>(
        &self,
        caller: &Caller,
        operation: Operation,
        sandbox: &str,
        ask: &O,
        changes: Option<Value>,
        by: &Provenance,
    ) -> Result<(Call<O>, audit::Entry), Error> {
        let seat = self.find(caller, operation, sandbox, by).await?;
        let running = seat.running()?;
        let mut entry = record::entry(caller, operation, by).about(&seat.row());
        if let Some(Value::Object(details)) = changes {
            entry.details.extend(details);
            let accepted = entry.clone().with_outcome("accepted");
            self.ledger.commit(Batch::entry(accepted)).await?;
        }
        let call = running.guest.call(ask).map_err(Error::Guest)?;
        let entry = entry.with_task(call.digest().0);
        Ok((call, entry))
    }

    /// Records how an operation went.
    async fn told<T>(&self, entry: audit::Entry, done: &Result<T, Error>) -> Result<(), Error> {
        let outcome = match done {
            Ok(_) => "ok",
            Err(error) => error.problem().code.as_str(),
        };
        self.ledger.commit(Batch::entry(entry.now().with_outcome(outcome))).await?;
        Ok(())
    }

    /// An operation of the guest that changes something, with its two records. Whatever becomes
    /// of the caller, the second is written.
    pub(crate) async fn tell<O>(
        &self,
        caller: &Caller,
        operation: Operation,
        sandbox: &str,
        ask: &O,
        details: Value,
        by: &Provenance,
    ) -> Result<O::Reply, Error>
    where
        O: GuestOperation + 'static,
        O::Reply: Send + Sync,
    {
        self.open_for_work()?;
        let (call, entry) = self.call(caller, operation, sandbox, ask, Some(details), by).await?;
        let manager = self.arc();
        let telling = self.tasks.spawn(async move {
            let done = call.reply().await.map_err(Error::Guest);
            manager.told(entry, &done).await?;
            done
        });
        telling.await.map_err(|_| Error::ShuttingDown)?
    }

    /// An operation of the guest that only looks.
    async fn look<O: GuestOperation>(
        &self,
        caller: &Caller,
        operation: Operation,
        sandbox: &str,
        ask: &O,
        by: &Provenance,
    ) -> Result<Call<O>, Error> {
        Ok(self.call(caller, operation, sandbox, ask, None, by).await?.0)
    }

    async fn download<O: GuestOperation>(
        &self,
        caller: &Caller,
        sandbox: &str,
        ask: &O,
        by: &Provenance,
    ) -> Result<Download<O>, Error> {
        // What leaves a sandbox is told, as what enters it is.
        let (call, entry) = self.call(caller, Operation::FileRead, sandbox, ask, None, by).await?;
        self.ledger.commit(Batch::entry(entry)).await?;
        call.input().finish();
        let output = call.output();
        Ok(Download { call, output })
    }

    async fn upload<O: GuestOperation>(
        &self,
        caller: &Caller,
        sandbox: &str,
        ask: &O,
        details: Value,
        by: &Provenance,
    ) -> Result<Upload<O>, Error> {
        self.open_for_work()?;
        let operation = Operation::FileWrite;
        let (call, entry) = self.call(caller, operation, sandbox, ask, Some(details), by).await?;
        let input = call.input();
        Ok(Upload { call, input, manager: self.arc(), entry })
    }

    /// A file's bytes, or a range of them.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn read_file(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: ReadQuery,
        range: Option<(u64, Option<u64>)>,
        by: &Provenance,
    ) -> Result<Download<op::Read>, Error> {
        query.validate()?;
        let (offset, length) = range.unwrap_or((0, None));
        let (path, user) = (text("path", query.path)?, user(query.user)?);
        let read = op::Read { path, offset, length, user };
        self.download(caller, sandbox, &read, by).await
    }

    /// A way to write a file.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn write_file(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: WriteQuery,
        by: &Provenance,
    ) -> Result<Upload<op::Write>, Error> {
        query.validate()?;
        let at = match query.at {
            WriteAt::Replace => op::WriteAt::Replace,
            WriteAt::Append => op::WriteAt::Append,
            WriteAt::Offset(offset) => op::WriteAt::Offset(offset),
        };
        let details = json!({"path": query.path});
        let write = op::Write {
            path: text("path", query.path)?,
            at,
            mode: query.mode.map_or(FILE_MODE, api::FileMode::bits),
            parents: query.parents,
            user: user(query.user)?,
        };
        self.upload(caller, sandbox, &write, details, by).await
    }

    /// A directory, or one file, as a tar.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn tar_out(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: PathQuery,
        by: &Provenance,
    ) -> Result<Download<op::TarOut>, Error> {
        query.validate()?;
        let tar = op::TarOut {
            path: text("path", query.path)?,
            user: user(query.user)?,
            changed: false,
            asks: false,
        };
        self.download(caller, sandbox, &tar, by).await
    }

    /// A way to unpack a tar below a directory.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn tar_in(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: TarInQuery,
        by: &Provenance,
    ) -> Result<Upload<op::TarIn>, Error> {
        query.validate()?;
        let details = json!({"path": query.path, "tar": true});
        let (path, user) = (text("path", query.path)?, user(query.user)?);
        let tar = op::TarIn { path, read_only: query.read_only, user, remember: false };
        self.upload(caller, sandbox, &tar, details, by).await
    }

    /// A file's metadata.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn stat_file(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: StatQuery,
        by: &Provenance,
    ) -> Result<FileInfo, Error> {
        query.validate()?;
        let (path, user) = (text("path", query.path)?, user(query.user)?);
        let stat = op::Stat { path, follow: query.follow, user };
        let call = self.look(caller, Operation::FileStat, sandbox, &stat, by).await?;
        Ok(call.reply().await.map_err(Error::Guest)?.into())
    }

    /// A directory's entries; of many, the first.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn list_files(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: ListFilesQuery,
        by: &Provenance,
    ) -> Result<FileList, Error> {
        query.validate()?;
        let (path, user) = (text("path", query.path)?, user(query.user)?);
        let list = op::List { path, depth: query.depth.unwrap_or(1), user };
        let call = self.look(caller, Operation::FileList, sandbox, &list, by).await?;
        call.input().finish();
        let mut lines = Lines::new(call.output());
        let mut entries = Vec::new();
        while let Some(line) = lines.next().await? {
            if entries.len() >= FileList::MAX {
                return Ok(FileList { entries, truncated: true });
            }
            let info: op::FileInfo = parse(&line)?;
            entries.push(info.into());
        }
        call.reply().await.map_err(Error::Guest)?;
        Ok(FileList { entries, truncated: false })
    }

    /// Changes below a path, from the event `ready` on.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn watch_files(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: WatchQuery,
        by: &Provenance,
    ) -> Result<Watch, Error> {
        query.validate()?;
        let (path, user) = (text("path", query.path)?, user(query.user)?);
        let watch = op::Watch { path, recursive: query.recursive, user };
        let call = self.look(caller, Operation::FileWatch, sandbox, &watch, by).await?;
        Ok(Watch { lines: Lines::new(call.output()), _input: call.input(), _call: call })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn make_directory(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: MakeDirectory,
        by: &Provenance,
    ) -> Result<(), Error> {
        request.validate()?;
        let details = json!({"path": request.path});
        let mkdir = op::Mkdir {
            path: request.path,
            parents: request.parents,
            mode: request.mode.map_or(DIRECTORY_MODE, api::FileMode::bits),
            owner: None,
            group: None,
            user: user(request.user)?,
        };
        self.tell(caller, Operation::FileMkdir, sandbox, &mkdir, details, by).await.map(drop)
    }

    /// Moves a file or directory within one file system.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn move_file(
        &self,
        caller: &Caller,
        sandbox: &str,
        request: MoveFile,
        by: &Provenance,
    ) -> Result<(), Error> {
        request.validate()?;
        let details = json!({"from": request.from, "to": request.to});
        let MoveFile { from, to, replace, user: as_whom } = request;
        let rename = op::Rename { from, to, replace, user: user(as_whom)? };
        self.tell(caller, Operation::FileMove, sandbox, &rename, details, by).await.map(drop)
    }

    /// Removes a file, or with `recursive` a directory and all that is in it.
    ///
    /// # Errors
    /// `NotFound`, `State`, `Guest`.
    pub async fn remove_file(
        &self,
        caller: &Caller,
        sandbox: &str,
        query: PathQuery,
        recursive: bool,
        by: &Provenance,
    ) -> Result<(), Error> {
        query.validate()?;
        let details = json!({"path": query.path, "recursive": recursive});
        let (path, user) = (text("path", query.path)?, user(query.user)?);
        let remove = op::Remove { path, recursive, user };
        self.tell(caller, Operation::FileRemove, sandbox, &remove, details, by).await.map(drop)
    }
}
