//! A fleet on the mock engine, in a directory of its own.
#![allow(dead_code, reason = "every test file is a program of its own and uses its part of this")]

use std::sync::Arc;
use std::time::Duration;

use access::Caller;
use api::{Command, CreateSandbox, Exec, Role, Sandbox};
use fleet::{Config, Manager, Mode, Provenance};
use supervisor::mock::{Mock, Reply};
use supervisor::{Supervisor, image};
use tempfile::TempDir;

/// Commands that every mock guest here knows.
pub(crate) fn mock() -> Mock {
    Mock::default()
        .on(["true"], Reply::exit(0))
        .on(["false"], Reply::exit(1))
        .on(["greet"], Reply::exit(0).stdout("hello\n").stderr("well\n"))
        .on(["serve"], Reply::exit(0).stdout("up\n").until_signalled())
        .on(["cat"], Reply::echo())
}

/// Where it lives; gone with this.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::Builder::new().prefix("fl").tempdir().unwrap() }
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new(Mode::Daemon, self.directory.path().join("data"));
        config.max_booting = 4;
        // Not into the keychain of whoever runs the tests.
        config.secrets.place = Some(secrets::Place::KeyFile);
        config
    }

    pub(crate) fn supervisor(&self, mock: Mock) -> Supervisor {
        let images = image::Store::open(&self.directory.path().join("cache")).unwrap();
        Supervisor::with_engines(images, vec![Box::new(mock)])
            .with_runtime_directory(self.directory.path().join("run"))
    }

    pub(crate) async fn open(&self, mock: Mock) -> Arc<Manager> {
        self.open_with(self.config(), mock).await
    }

    pub(crate) async fn open_with(&self, config: Config, mock: Mock) -> Arc<Manager> {
        Manager::open(config, self.supervisor(mock)).await.unwrap()
    }

    /// Machines' directories that are there.
    pub(crate) fn machines(&self) -> usize {
        match std::fs::read_dir(self.directory.path().join("run")) {
            Ok(entries) => entries.count(),
            Err(_) => 0,
        }
    }
}

pub(crate) fn root() -> Caller {
    Caller::local(0)
}

pub(crate) fn member(workspace: &str, role: Role) -> Caller {
    Caller {
        subject: format!("{role}-of-{workspace}"),
        kind: api::CallerKind::Token,
        role,
        workspace: Some(workspace.into()),
        operations: None,
        token_id: Some(format!("tok-{role}-{workspace}")),
        key_id: None,
    }
}

pub(crate) fn by() -> Provenance {
    Provenance { remote: "test".into(), ..Provenance::default() }
}

pub(crate) fn request() -> CreateSandbox {
    CreateSandbox { engine: Some("mock".into()), memory_mb: Some(128), ..CreateSandbox::default() }
}

pub(crate) fn argv(words: &[&str]) -> Exec {
    Exec::new(Command::Argv(words.iter().map(|word| (*word).into()).collect()))
}

pub(crate) async fn create(manager: &Manager) -> Sandbox {
    manager.create(&root(), request(), &by()).await.unwrap()
}

/// Waits for what should come soon.
pub(crate) async fn soon<F: AsyncFnMut() -> bool>(mut wanted: F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !wanted().await {
        assert!(tokio::time::Instant::now() < deadline, "it did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
