//! The store in a file: what is kept, who gets it, and what is on the disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use secrets::{
    Custom, Error, Key, New, Options, Origin, Passphrase, Place, Purpose, Scope, SlotPlace, Source,
    SourceKind, Store,
};
use services::Catalogue;
use wire::text::Secret;

const CANARY: &str = "canary-0123456789-canary-0123456789";

fn options() -> Options {
    Options { place: Some(Place::KeyFile), work_factor: Some(4), ..Options::default() }
}

fn store(directory: &Path) -> Store {
    Store::open(&directory.join("secrets"), options())
}

fn key(scope: Scope, service: &str) -> Key {
    Key { workspace: "default".into(), scope, service: service.into() }
}

fn global(service: &str) -> Key {
    key(Scope::Global, service)
}

fn own(sandbox: &str, service: &str) -> Key {
    key(Scope::Sandbox(sandbox.into()), service)
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec()).unwrap()
}

fn value(text: &str) -> New {
    New { source: Source::Value(secret(text)), parameters: BTreeMap::new(), custom: None }
}

fn from(source: Source) -> New {
    New { source, ..value("not-used-at-all") }
}

fn set(store: &Store, key: &Key, new: New) {
    store.set(&Catalogue::built_in(), key, new).unwrap();
}

fn nothing(_: &str) -> Option<OsString> {
    None
}

/// The value and where it came from.
fn found(
    store: &Store,
    sandbox: Option<&str>,
    service: &str,
    environment: &[(&str, &str)],
) -> Option<(String, Origin)> {
    let get = |name: &str| {
        environment.iter().find(|(other, _)| *other == name).map(|(_, value)| value.into())
    };
    let found = store.find(&Catalogue::built_in(), "default", sandbox, service, &get).unwrap()?;
    Some((String::from_utf8(found.secret.expose().to_vec()).unwrap(), found.origin))
}

/// All bytes below a directory.
fn on_disk(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => bytes.extend(on_disk(&path)),
            false => bytes.extend(fs::read(path).unwrap()),
        }
    }
    bytes
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn a_secret_is_kept_and_shown_without_its_value() {
    let directory = tempfile::tempdir().unwrap();
    let before = store(directory.path());
    set(&before, &global("github"), value("ghp_abcdefghijklmnopqrstuvwxyz0123456789"));
    let after = store(directory.path());
    let entries = after.list("default").unwrap();
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((entry.masked.as_str(), entry.source), ("****6789", SourceKind::Value));
    assert_eq!(entry.key, global("github"));
    assert!(entry.created_ms > 1_700_000_000_000 && entry.changed_ms >= entry.created_ms);
    assert!(!format!("{entries:?} {after:?}").contains("abcdefghij"));
    let (text, origin) = found(&after, None, "github", &[]).unwrap();
    assert_eq!(text, "ghp_abcdefghijklmnopqrstuvwxyz0123456789");
    assert_eq!(origin, Origin::Stored(Scope::Global));
}

#[test]
fn nothing_on_the_disk_has_the_value_or_even_the_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    set(&store, &global("github"), value(CANARY));
    set(&store, &own("sb-1", "openai"), from(Source::Command(format!("echo {CANARY}"))));
    let bytes = on_disk(directory.path());
    assert!(bytes.len() > 500);
    for text in [CANARY, "canary-0123456789", "github", "openai", "sb-1"] {
        assert!(!holds(&bytes, text), "{text}");
    }
}

#[test]
fn the_directory_and_every_file_are_the_users_alone() {
    let directory = tempfile::tempdir().unwrap();
    set(&store(directory.path()), &global("github"), value(CANARY));
    let path = directory.path().join("secrets");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    let names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.iter().all(|name| mode(name) == 0o600));
}

#[test]
fn what_others_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    set(&store, &global("github"), value(CANARY));
    let file = directory.path().join("secrets/key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let fresh = Store::open(&directory.path().join("secrets"), options());
    assert!(matches!(fresh.list("default"), Err(Error::NotPrivate { path, .. }) if path == file));
}

#[test]
fn a_sandboxs_own_secret_wins_over_a_global_one_and_that_over_a_variable() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let environment = [("GITHUB_TOKEN", "from-the-environment")];
    let of = |sandbox: Option<&str>| found(&store, sandbox, "github", &environment).unwrap();
    let variable = Origin::Environment("GITHUB_TOKEN".into());
    assert_eq!(of(Some("sb-1")), ("from-the-environment".into(), variable));
    set(&store, &global("github"), value("global-value"));
    assert_eq!(of(Some("sb-1")).0, "global-value");
    set(&store, &own("sb-1", "github"), value("value-of-one"));
    assert_eq!(of(Some("sb-1")).0, "value-of-one");
    assert_eq!(of(Some("sb-2")).0, "global-value");
    assert_eq!(of(None).0, "global-value");
}

#[test]
fn the_variable_that_wins_is_the_one_that_the_services_own_programs_prefer() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let both = [("GITHUB_TOKEN", "second-value"), ("GH_TOKEN", "first-value")];
    assert_eq!(found(&store, None, "github", &both).unwrap().0, "first-value");
    let empty = [("GITHUB_TOKEN", "second-value"), ("GH_TOKEN", "")];
    assert_eq!(found(&store, None, "github", &empty).unwrap().0, "second-value");
    assert_eq!(found(&store, None, "github", &[]), None);
    assert!(!directory.path().join("secrets").exists(), "nothing is made for a question");
}

#[test]
fn workspaces_do_not_see_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let other = Key { workspace: "other".into(), ..global("github") };
    set(&store, &other, value(CANARY));
    assert_eq!(store.list("default").unwrap(), []);
    assert_eq!(found(&store, None, "github", &[]), None);
    assert!(!store.remove(&global("github")).unwrap());
    assert_eq!(store.list("other").unwrap().len(), 1);
}

#[test]
fn a_command_and_a_variable_are_asked_at_each_use() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let file = directory.path().join("value");
    fs::write(&file, "value-at-first\n").unwrap();
    set(&store, &global("github"), from(Source::Command(format!("cat {}", file.display()))));
    assert_eq!(found(&store, None, "github", &[]).unwrap().0, "value-at-first");
    fs::write(&file, "value-later-on\n").unwrap();
    assert_eq!(found(&store, None, "github", &[]).unwrap().0, "value-later-on");
    set(&store, &global("openai"), from(Source::Env("MY_KEY".into())));
    assert_eq!(found(&store, None, "openai", &[("MY_KEY", "from-mine")]).unwrap().0, "from-mine");
    let shown: Vec<String> =
        store.list("default").unwrap().into_iter().map(|entry| entry.masked).collect();
    assert_eq!(shown, ["cat …", "$MY_KEY"]);
}

#[test]
fn what_is_set_again_keeps_when_it_was_first_set() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    set(&store, &global("github"), value("first-value"));
    let first = store.get(&global("github")).unwrap().unwrap();
    set(&store, &global("github"), value("second-value"));
    let second = store.get(&global("github")).unwrap().unwrap();
    assert_eq!(second.created_ms, first.created_ms);
    assert!(second.changed_ms >= first.changed_ms);
    assert_eq!(store.list("default").unwrap().len(), 1);
}

#[test]
fn the_secrets_of_a_sandbox_go_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    for (sandbox, service) in [("sb-1", "github"), ("sb-1", "openai"), ("sb-2", "github")] {
        set(&store, &own(sandbox, service), value(CANARY));
    }
    set(&store, &global("github"), value(CANARY));
    assert_eq!(store.remove_sandbox("default", "sb-1").unwrap(), 2);
    let left: Vec<Scope> =
        store.list("default").unwrap().into_iter().map(|entry| entry.key.scope).collect();
    assert_eq!(left, [Scope::Global, Scope::Sandbox("sb-2".into())]);
}

#[test]
fn a_service_of_ones_own_is_kept_beside_its_secret() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let custom = Custom {
        hosts: vec!["api.shop.example".into()],
        env: vec!["SHOP_KEY".into()],
        slots: vec![SlotPlace::Header { name: "x-shop-key".into(), scheme: None }],
        prefix: "shop_".into(),
        characters: secrets::Characters::Hex,
        length: None,
    };
    set(&store, &global("shop"), New { custom: Some(custom.clone()), ..value(CANARY) });
    let catalogue = Catalogue::built_in();
    let found = store.find(&catalogue, "default", None, "shop", &nothing).unwrap().unwrap();
    assert_eq!(found.service.inject_hosts[0].to_string(), "api.shop.example:443");
    assert_eq!(store.list("default").unwrap()[0].custom, Some(custom.clone()));
    let wild = Custom { hosts: vec!["*.example".into()], ..custom };
    let new = New { custom: Some(wild), ..value(CANARY) };
    let error = store.set(&catalogue, &global("wild"), new).unwrap_err();
    assert!(matches!(error, Error::Custom { .. }), "{error}");
}

#[test]
fn what_no_service_could_use_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let catalogue = Catalogue::built_in();
    let fails = |service: &str, new: New| store.set(&catalogue, &global(service), new).unwrap_err();
    assert!(fails("gitub", value(CANARY)).to_string().contains("did you mean \"github\"?"));
    assert!(fails("azure-openai", value(CANARY)).to_string().contains("needs resource"));
    assert!(fails("aws", value(CANARY)).to_string().contains("ID:KEY"));
    assert!(fails("github", value("short")).to_string().contains("shorter than 8"));
    assert!(fails("github", value("two\nlines-of-text")).to_string().contains("line break"));
    let long = own(&"x".repeat(200), "github");
    let error = store.set(&catalogue, &long, value(CANARY)).unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
    assert!(!directory.path().join("secrets").exists());
}

#[test]
fn keys_of_aws_come_from_their_variables_together() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let keys = [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let (text, origin) = found(&store, None, "aws", &keys).unwrap();
    assert_eq!(text, "AKIAEXAMPLE:secret");
    assert_eq!(origin, Origin::Environment("AWS_ACCESS_KEY_ID".into()));
    assert_eq!(found(&store, None, "aws", &keys[..1]), None);
}

#[test]
fn what_will_be_available_is_told_without_a_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let trap = directory.path().join("ran");
    set(&store, &global("github"), from(Source::Command(format!("touch {}", trap.display()))));
    set(&store, &own("sb-1", "openai"), value(CANARY));
    let environment = |name: &str| (name == "GROQ_API_KEY").then(|| OsString::from("x"));
    let available = |sandbox: Option<&str>| -> Vec<(String, String)> {
        let catalogue = Catalogue::built_in();
        let all = store.available(&catalogue, "default", sandbox, &environment).unwrap();
        all.into_iter().map(|(name, origin)| (name, origin.to_string())).collect()
    };
    let pair = |name: &str, origin: &str| (name.to_owned(), origin.to_owned());
    let github = pair("github", "stored for every sandbox");
    let groq = pair("groq", "from $GROQ_API_KEY");
    assert_eq!(available(None), [github.clone(), groq.clone()]);
    assert_eq!(available(Some("sb-1")), [github, groq, pair("openai", "stored for this sandbox")]);
    assert!(!trap.exists(), "no command is run");
}

fn with_passphrase(directory: &Path, text: &'static str) -> (Store, Arc<Mutex<Vec<Purpose>>>) {
    let asked: Arc<Mutex<Vec<Purpose>>> = Arc::default();
    let log = asked.clone();
    let ask = move |purpose| {
        log.lock().unwrap().push(purpose);
        Ok(secret(text))
    };
    let passphrase = Passphrase::Ask(Arc::new(ask));
    let options = Options { place: Some(Place::Passphrase), passphrase, ..options() };
    (Store::open(&directory.join("secrets"), options), asked)
}

#[test]
fn a_passphrase_is_asked_for_once_and_opens_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let (store, asked) = with_passphrase(directory.path(), "correct horse");
    set(&store, &global("github"), value(CANARY));
    set(&store, &global("openai"), value(CANARY));
    assert_eq!(*asked.lock().unwrap(), [Purpose::New]);
    let (store, asked) = with_passphrase(directory.path(), "correct horse");
    assert_eq!(store.list("default").unwrap().len(), 2);
    assert_eq!(found(&store, None, "github", &[]).unwrap().0, CANARY);
    assert_eq!(*asked.lock().unwrap(), [Purpose::Open]);
    assert!(!holds(&on_disk(directory.path()), "AGE-SECRET-KEY"));
}

#[test]
fn a_wrong_passphrase_says_so_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = with_passphrase(directory.path(), "correct horse");
    set(&store, &global("github"), value(CANARY));
    let before = on_disk(directory.path());
    let (wrong, _) = with_passphrase(directory.path(), "battery staple");
    let is_wrong =
        |error: Error| assert!(matches!(error, Error::WrongPassphrase { .. }), "{error}");
    is_wrong(wrong.list("default").unwrap_err());
    is_wrong(wrong.set(&Catalogue::built_in(), &global("openai"), value(CANARY)).unwrap_err());
    is_wrong(wrong.remove(&global("github")).unwrap_err());
    assert_eq!(on_disk(directory.path()), before);
    assert_eq!(found(&store, None, "github", &[]).unwrap().0, CANARY);
}

#[test]
fn a_passphrase_can_be_in_a_file_and_a_weak_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passphrase");
    let open = || {
        let passphrase = Passphrase::File(file.clone());
        let options = Options { place: Some(Place::Passphrase), passphrase, ..options() };
        Store::open(&directory.path().join("secrets"), options)
    };
    let weak = |store: &Store| {
        store.set(&Catalogue::built_in(), &global("github"), value(CANARY)).unwrap_err()
    };
    fs::write(&file, "short\n").unwrap();
    assert!(matches!(weak(&open()), Error::WeakPassphrase { .. }));
    fs::write(&file, "long enough\nignored").unwrap();
    set(&open(), &global("github"), value(CANARY));
    fs::write(&file, "long enough\r\n").unwrap();
    assert_eq!(open().list("default").unwrap().len(), 1);
}

#[test]
fn without_a_passphrase_nothing_is_asked_and_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { place: Some(Place::Passphrase), ..options() };
    let store = Store::open(&directory.path().join("secrets"), options);
    let error = store.set(&Catalogue::built_in(), &global("github"), value(CANARY)).unwrap_err();
    assert!(error.to_string().contains("SANDFORGE_SECRETS_PASSPHRASE_FILE"), "{error}");
    assert!(!holds(&on_disk(directory.path()), CANARY));
}

#[test]
fn a_damaged_file_is_an_error_and_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    set(&store, &global("github"), value(CANARY));
    let file = directory.path().join("secrets/secrets.age");
    let whole = fs::read(&file).unwrap();
    for at in [0, 30, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let error = store.list("default").unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{at}: {error}");
        let set = store.set(&Catalogue::built_in(), &global("openai"), value(CANARY));
        assert!(matches!(set, Err(Error::Damaged { .. })));
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
    for length in [0, 10, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(store.list("default").is_err(), "{length}");
    }
    fs::write(&file, &whole).unwrap();
    assert_eq!(store.list("default").unwrap().len(), 1);
}

#[test]
fn a_lost_key_is_told_and_no_other_takes_its_place() {
    let directory = tempfile::tempdir().unwrap();
    set(&store(directory.path()), &global("github"), value(CANARY));
    let file = directory.path().join("secrets/key");
    let key = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let fresh = store(directory.path());
    let error = fresh.set(&Catalogue::built_in(), &global("openai"), value(CANARY)).unwrap_err();
    assert!(matches!(error, Error::KeyGone { .. }), "{error}");
    assert!(!file.exists());
    fs::write(&file, key).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fresh.list("default").unwrap().len(), 1);
}

#[test]
fn a_reset_gives_up_what_nobody_can_read_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    set(&store, &global("github"), value(CANARY));
    fs::write(directory.path().join("secrets/secrets.age"), "junk").unwrap();
    store.reset().unwrap();
    assert_eq!(store.list("default").unwrap(), []);
    let left: Vec<_> = fs::read_dir(directory.path().join("secrets"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
    set(&store, &global("github"), value(CANARY));
    assert_eq!(store.list("default").unwrap().len(), 1);
}

#[test]
fn another_that_was_reset_and_filled_again_is_read_with_its_new_key() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (store(directory.path()), store(directory.path()));
    set(&one, &global("github"), value(CANARY));
    assert_eq!(other.list("default").unwrap().len(), 1);
    one.reset().unwrap();
    set(&one, &global("openai"), value(CANARY));
    assert_eq!(other.list("default").unwrap()[0].key, global("openai"));
    set(&other, &global("groq"), value(CANARY));
    assert_eq!(one.list("default").unwrap().len(), 2);
}

#[test]
fn a_store_says_where_it_is_and_keeps_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let before = store.describe().unwrap();
    assert!(!before.is_made);
    set(&store, &global("github"), value(CANARY));
    let text = store.describe().unwrap().to_string();
    assert!(text.contains("secrets.age\", encrypted; its key is in \""), "{text}");
    let options = Options { place: Some(Place::Passphrase), ..options() };
    let other = Store::open(&directory.path().join("secrets"), options);
    let error = other.list("default").unwrap_err().to_string();
    assert!(error.contains("in an encrypted file with a key file already"), "{error}");
}

#[test]
fn a_key_in_the_kernel_is_on_no_disk() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let options = Options { place: Some(Place::KernelKeyring), ..options() };
        Store::open(&directory.path().join("secrets"), options)
    };
    match open().set(&Catalogue::built_in(), &global("github"), value(CANARY)) {
        Err(error @ Error::KernelKeyring { .. }) => {
            println!("not run: the kernel's keyring cannot be used here ({error})");
            return;
        }
        other => other.map(|_| ()).unwrap(),
    }
    assert_eq!(found(&open(), None, "github", &[]).unwrap().0, CANARY);
    let bytes = on_disk(directory.path());
    assert!(!holds(&bytes, "AGE-SECRET-KEY") && !holds(&bytes, CANARY));
    open().reset().unwrap();
    assert_eq!(open().list("default").unwrap(), []);
}

#[test]
fn threads_of_one_process_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, count) = (&store, &count);
            scope.spawn(move || {
                for number in 0..5 {
                    set(store, &own(&format!("sb-{thread}-{number}"), "github"), value(CANARY));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(store.list("default").unwrap().len(), count.into_inner());
}
