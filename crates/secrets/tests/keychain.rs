//! A real keychain: GNOME Keyring on a session bus of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use secrets::{Error, Key, New, Options, Origin, Place, Scope, Source, Store};
use services::Catalogue;
use wire::text::Secret;

const INSIDE: &str = "SANDFORGE_TEST_KEYCHAIN";
const CANARY: &str = "canary-0123456789-canary-0123456789";

/// Runs a test of this file in a session with a keychain that is open, or says why it did not.
fn in_session(test: &str, daemon: &str) {
    let tools = ["dbus-run-session", "gnome-keyring-daemon", "secret-tool"];
    let is_there = |tool: &&str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|directory| directory.join(tool).is_file())
    };
    if let Some(tool) = tools.iter().find(|tool| !is_there(tool)) {
        println!("not run: {tool} is missing (apt-get install gnome-keyring dbus libsecret-tools)");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let script = format!("{daemon}\nexec \"$0\" --exact {test} --nocapture");
    let status = Command::new("dbus-run-session")
        .args(["--", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, home.path())
        .env("HOME", home.path())
        .env("XDG_DATA_HOME", home.path().join("share"))
        .env("XDG_RUNTIME_DIR", home.path())
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let files = on_disk(home.path());
    assert!(!files.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()));
}

const OPEN: &str = "printf test | gnome-keyring-daemon --unlock --components=secrets >&2 || exit 1";

fn on_disk(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match (path.is_dir(), path.is_file()) {
            (true, _) => bytes.extend(on_disk(&path)),
            (_, true) => bytes.extend(std::fs::read(path).unwrap()),
            // A socket.
            _ => {}
        }
    }
    bytes
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec()).unwrap()
}

fn key(scope: Scope, service: &str) -> Key {
    Key { workspace: "default".into(), scope, service: service.into() }
}

fn set(store: &Store, key: &Key, text: &str) -> Result<(), Error> {
    let source = Source::Value(secret(text));
    let new = New { source, parameters: BTreeMap::new(), custom: None };
    store.set(&Catalogue::built_in(), key, new).map(|_| ())
}

fn found(store: &Store, sandbox: Option<&str>) -> Option<(Vec<u8>, Origin)> {
    let catalogue = Catalogue::built_in();
    let found = store.find(&catalogue, "default", sandbox, "github", &|_| None).unwrap()?;
    Some((found.secret.expose().to_vec(), found.origin))
}

#[test]
fn secrets_are_kept_in_the_keychain_of_the_session() {
    let Some(home) = std::env::var_os(INSIDE) else {
        return in_session("secrets_are_kept_in_the_keychain_of_the_session", OPEN);
    };
    let directory = Path::new(&home).join("secrets");
    let store = Store::open(&directory, Options::default());
    assert_eq!(store.describe().unwrap().place, Place::Keychain);
    let (global, own) =
        (key(Scope::Global, "github"), key(Scope::Sandbox("sb-1".into()), "github"));
    set(&store, &global, "the-first-value").unwrap();
    set(&store, &global, CANARY).unwrap();
    set(&store, &own, "the-sandboxs-own").unwrap();
    // As another process sees it.
    let store = Store::open(&directory, Options::default());
    assert_eq!(
        store.describe().unwrap().to_string(),
        "in the keychain of your session (Secret Service)"
    );
    assert_eq!(found(&store, None), Some((CANARY.into(), Origin::Stored(Scope::Global))));
    let own_origin = Origin::Stored(Scope::Sandbox("sb-1".into()));
    assert_eq!(found(&store, Some("sb-1")), Some(("the-sandboxs-own".into(), own_origin)));
    let shown: Vec<String> =
        store.list("default").unwrap().into_iter().map(|entry| entry.masked).collect();
    assert_eq!(shown, ["****6789", "****"]);
    // Another program of the desktop finds it under its name.
    let search = Command::new("secret-tool")
        .args(["search", "--all", "application", "sandforge", "service", "github"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&search.stdout).into_owned();
    assert!(text.contains("label = Sandforge: github (global)"), "{text}");
    // A store of another directory has its own.
    let other = Store::open(&Path::new(&home).join("other"), Options::default());
    set(&other, &global, "of-another-store").unwrap();
    assert_eq!(store.remove_sandbox("default", "sb-1").unwrap(), 1);
    assert!(store.remove(&global).unwrap() && !store.remove(&global).unwrap());
    set(&store, &global, CANARY).unwrap();
    store.reset().unwrap();
    assert_eq!(store.list("default").unwrap(), []);
    assert_eq!(other.list("default").unwrap().len(), 1);
    other.reset().unwrap();
    let files: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["lock"]);
}

#[test]
fn from_within_a_runtime_it_works_too() {
    let Some(home) = std::env::var_os(INSIDE) else {
        return in_session("from_within_a_runtime_it_works_too", OPEN);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&Path::new(&home).join("secrets"), Options::default());
        set(&store, &key(Scope::Global, "github"), CANARY).unwrap();
        assert_eq!(found(&store, None).unwrap().0, CANARY.as_bytes());
    });
}

#[test]
fn without_a_keychain_there_is_a_file_and_the_reason_is_told() {
    let Some(home) = std::env::var_os(INSIDE) else {
        return in_session("without_a_keychain_there_is_a_file_and_the_reason_is_told", "");
    };
    let directory = Path::new(&home).join("secrets");
    let asked = Options { place: Some(Place::Keychain), ..Options::default() };
    let error = set(&Store::open(&directory, asked), &key(Scope::Global, "github"), CANARY);
    assert!(matches!(error, Err(Error::Keychain { .. })), "{error:?}");
    let store = Store::open(&directory, Options::default());
    set(&store, &key(Scope::Global, "github"), CANARY).unwrap();
    let description = store.describe().unwrap();
    assert_eq!(description.place, Place::KeyFile);
    assert!(description.to_string().contains("(there is no keychain here: "), "{description}");
    assert_eq!(found(&store, None).unwrap().0, CANARY.as_bytes());
}

#[test]
fn secrets_in_a_keychain_that_is_gone_are_not_taken_for_none() {
    let Some(home) = std::env::var_os(INSIDE) else {
        return in_session("secrets_in_a_keychain_that_is_gone_are_not_taken_for_none", "");
    };
    let directory = Path::new(&home).join("secrets");
    let options = Options { place: Some(Place::KeyFile), ..Options::default() };
    set(&Store::open(&directory, options), &key(Scope::Global, "github"), CANARY).unwrap();
    std::fs::write(directory.join("store.json"), r#"{"version":1,"place":"keychain"}"#).unwrap();
    let store = Store::open(&directory, Options::default());
    assert!(matches!(store.list("default"), Err(Error::Keychain { .. })));
    assert!(matches!(
        set(&store, &key(Scope::Global, "openai"), CANARY),
        Err(Error::Keychain { .. })
    ));
}
