//! The command with a network: a real program in a sandbox, a real server with a certificate of its
//! own, and a credential that the sandbox never has. On each engine that works here.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use support::origin::{certify, upstream};
use support::{Call, Output, engines};
use tempfile::{TempDir, tempdir};

const KEY: &str = "sk-real-0123456789abcdefghijklmnopqrstuvwxyz";

/// Asks for each address and prints what came of it.
const PROGRAM: &str = r#"
import os, sys, urllib.error, urllib.request
print("key", os.environ["OPENAI_API_KEY"])
for method, url in [argument.split(" ") for argument in sys.argv[1:]]:
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]} if "openai" in url else {}
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            print(url, answer.status, answer.read().decode().strip())
    except urllib.error.HTTPError as error:
        print(url, error.code, error.read().decode().strip())
    except OSError as error:
        print(url, repr(error))
"#;

/// What the server is known by.
const NAMES: [&str; 2] = ["api.openai.com", "docs.example"];

/// A server that answers with what it was asked, and remembers it.
struct Origin {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    fn start(directory: &Path) -> Self {
        certify(directory, &NAMES);
        let leaf = CertificateDer::from_pem_file(directory.join("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (config, all) = (Arc::new(config), asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let session = ServerConnection::new(config.clone()).unwrap();
                let all = all.clone();
                thread::spawn(move || {
                    let mut stream = BufReader::new(StreamOwned::new(session, stream));
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let body = format!("heard {}", head.replace("\r\n", " | "));
                    all.lock().unwrap().push(head);
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                    );
                    let _ = write!(stream.get_mut(), "{head}{body}");
                    let _ = stream.get_mut().flush();
                });
            }
        });
        Self { address, asked }
    }
}

struct Place {
    directory: TempDir,
    origin: Origin,
}

impl Place {
    fn new() -> Self {
        let directory = tempdir().unwrap();
        let origin = Origin::start(directory.path());
        let config = directory.path().join("config");
        fs::create_dir_all(&config).unwrap();
        let addresses = NAMES.map(|name| (name.to_owned(), origin.address));
        fs::write(config.join("upstream.toml"), upstream(directory.path(), &addresses)).unwrap();
        fs::create_dir(directory.path().join("work")).unwrap();
        fs::write(directory.path().join("work/ask.py"), PROGRAM).unwrap();
        Self { directory, origin }
    }

    fn call(&self, arguments: &[&str]) -> Call {
        let below = |name: &str| self.directory.path().join(name);
        fs::create_dir_all(below("run")).unwrap();
        Call::new(arguments)
            .env("SANDFORGE_CONFIG_DIR", below("config"))
            .env("SANDFORGE_DATA_DIR", below("data"))
            .env("SANDFORGE_RUNTIME_DIR", below("run"))
            .env("OPENAI_API_KEY", KEY)
    }

    fn ask(&self, engine: &str, flags: &[&str], asked: &[&str]) -> Output {
        let work = self.directory.path().join("work");
        let work = work.to_str().unwrap();
        let first = ["run", "--engine", engine, "-w", work];
        let program = ["--", "python3", "ask.py"];
        self.call(&[&first, flags, &program, asked].concat()).output()
    }
}

#[test]
fn a_key_is_used_outside_and_rules_are_by_method_and_path() {
    for engine in engines() {
        let place = Place::new();
        let flags = ["--credential", "openai", "--allow", "READ docs.example/guide/**"];
        let asked = [
            "GET https://api.openai.com/v1/models",
            "GET https://docs.example/guide/one",
            "POST https://docs.example/guide/one",
            "GET https://docs.example/other",
            "GET https://nobody.example/",
        ];
        let output = place.ask(engine, &flags, &asked).exits(0);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(!text.contains(KEY), "{engine}: {output}");
        let placeholder = lines[0].strip_prefix("key ").expect("the first line");
        assert!(placeholder.starts_with("sk-"), "{engine}: {output}");
        assert!(lines[1].contains(" 200 heard GET /v1/models "), "{engine}: {output}");
        assert!(lines[1].contains(&placeholder[..KEY.len()]), "{engine}: {output}");
        assert!(lines[2].contains(" 200 heard GET /guide/one "), "{engine}: {output}");
        for line in &lines[3..] {
            assert!(line.contains(" 403 ") && line.contains("egress_denied"), "{engine}: {output}");
        }
        let asked = place.origin.asked.lock().unwrap().join("\n");
        assert!(asked.contains(&format!("Bearer {KEY}\r\n")), "{engine}: {asked}");
        assert_eq!(asked.matches("HTTP/1.1\r\n").count(), 2, "{engine}: {asked}");
        output.says("it was denied nobody.example").says("--allow 'GET docs.example/other'");

        let log = place.call(&["audit", "export"]).output().exits(0).stdout;
        let log = String::from_utf8(log).unwrap();
        assert!(log.contains("egress_request") && log.contains("/guide/one"), "{log}");
        assert!(!log.contains(KEY), "{log}");
        place.call(&["audit", "verify"]).output().exits(0);

        let log = |flags: &[&str]| {
            let arguments = [&["egress", "log"], flags].concat();
            String::from_utf8(place.call(&arguments).output().exits(0).stdout).unwrap()
        };
        let all = log(&[]);
        let request =
            all.lines().find(|line| line.contains("GET api.openai.com/v1/models")).unwrap();
        assert!(request.contains(" allowed ") && request.contains(" 200, "), "{request}");
        assert!(request.contains("credential openai"), "{request}");
        let sandbox = request.split(' ').nth(1).unwrap();
        let denied = log(&[sandbox, "--denied"]);
        assert!(!denied.contains(" allowed "), "{denied}");
        assert!(denied.contains("--allow 'GET docs.example/other'"), "{denied}");
        let one = log(&[sandbox, "--json", "-n", "1"]);
        let one: serde_json::Value = serde_json::from_str(&one).unwrap();
        assert!(one["operation"].as_str().unwrap().starts_with("egress_"), "{one}");
    }
}

/// It would not trust the certificates of the sandbox.
#[test]
fn a_client_that_is_told_a_base_url_needs_no_certificate() {
    let Some(engine) = engines().first().copied() else { return };
    let place = Place::new();
    let line = "unset CURL_CA_BUNDLE SSL_CERT_FILE; echo $OPENAI_BASE_URL; \
                curl -s -H \"Authorization: Bearer $OPENAI_API_KEY\" $OPENAI_BASE_URL/models; \
                curl -s -o /dev/null -w '%{http_code}' http://169.254.169.254/latest/meta-data/";
    let flags = ["--credential", "openai", "--gateway", "openai"];
    let arguments = [&["-q", "run", "--engine", engine], &flags[..], &[line]].concat();
    let output = place.call(&arguments).output().exits(0);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "http://169.254.169.254:8787/proxy/openai/v1", "{output}");
    assert!(lines[1].starts_with("heard GET /v1/models "), "{output}");
    assert!(text.ends_with("404"), "{output}");
    assert!(!text.contains(KEY), "{output}");
    let asked = place.origin.asked.lock().unwrap().join("\n");
    assert!(asked.contains(&format!("Bearer {KEY}\r\n")), "{asked}");
}

#[test]
fn programs_of_an_image_are_tried_against_a_host_that_is_looked_into() {
    for engine in engines() {
        let place = Place::new();
        let output = place.call(&["doctor", "--in", "base", "--engine", engine, "--json"]).output();
        let report = output.json();
        for name in ["curl", "git", "python3"] {
            let programs = report["programs"].as_array().unwrap();
            let found = programs.iter().find(|one| one["name"] == name);
            assert_eq!(found.map(|one| &one["ok"]), Some(&true.into()), "{engine}: {output}");
        }
        assert!(place.origin.asked.lock().unwrap().is_empty());
    }
}

#[test]
fn without_rules_there_is_no_network() {
    for engine in engines() {
        let place = Place::new();
        let program = "import socket; print(socket.socket().connect_ex(('198.18.1.0', 443)))";
        let output = place.call(&["-q", "run", "--engine", engine, "--", "python3", "-c", program]);
        let output = output.output().exits(0);
        // ENETUNREACH.
        output.prints("101\n");
        assert!(place.origin.asked.lock().unwrap().is_empty());
    }
}

#[test]
fn what_makes_no_sense_is_said_before_anything_starts() {
    let place = Place::new();
    for (flags, words) in [
        (vec!["--allow", "FETCH example.com"], "FETCH"),
        (vec!["--credential", "nobody"], "nobody"),
        (vec!["--credential", "github"], "there is no credential for `github`"),
        (vec!["--profile", "none-such"], "there is no profile `none-such`"),
        (vec!["--network", "offline", "--allow", "example.com"], "offline"),
        (vec!["--allow", "@github READ /**"], "needs the credential `github`"),
        (vec!["--gateway", "openai"], "offline"),
        (vec!["--allow", "example.com", "--gateway", "openai"], "needs the credential `openai`"),
    ] {
        let arguments = [&["run"], &flags[..], &["true"]].concat();
        let output = place.call(&arguments).env("GITHUB_TOKEN", "").env("GH_TOKEN", "").output();
        output.exits(125).says(words);
    }
}

/// Unlike any other text, and in no argument, variable or file of the test's.
const CANARY: &str = "sk-canary-4f9Zq7Xw2Lk8Vt3Rb6Ny1Hs5Dj0Gm";

/// The canary as it is rendered somewhere.
fn forms() -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = CANARY.bytes().map(|byte| format!("%{byte:02X}")).collect();
    // What is the same in base64, whatever stands before and behind.
    let encoded = |before: &str| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(format!("{before}{CANARY}"));
        text.as_bytes()[4..48].to_vec()
    };
    vec![
        ("plain", CANARY.as_bytes()[3..].to_vec()),
        ("hexadecimal", hex.into_bytes()),
        ("percent", percent.into_bytes()),
        ("base64", encoded("")),
        ("base64, one further", encoded("a")),
        ("base64, two further", encoded("ab")),
    ]
}

fn has(text: &[u8], part: &[u8]) -> bool {
    // Nearly all of memory has no such first byte, or no such second one.
    let (first, second) = (part[0], part[1]);
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = &rest[at..];
        if rest.get(1) == Some(&second) && rest.starts_with(part) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// The forms that are in a process's memory.
fn found_in_memory(pid: u32) -> Vec<&'static str> {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let forms = forms();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let length = usize::try_from(u64::from_str_radix(to, 16).unwrap() - from).unwrap();
        // With what a piece has in common with the next.
        for at in (0..length).step_by(1 << 20) {
            let mut piece = vec![0; (length - at).min((1 << 20) + 200)];
            let Ok(count) = memory.read_at(&mut piece, from + at as u64) else { continue };
            let is_in = |(_, form): &&(&str, Vec<u8>)| has(&piece[..count], form);
            found.extend(forms.iter().filter(is_in).map(|(name, _)| *name));
        }
    }
    found
}

/// Files below a directory that have the canary in some form.
fn found_on_disk(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            if forms().iter().any(|(_, form)| has(&bytes, form)) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn of_a_credential_that_was_taken_away_nothing_is_left_in_memory_or_on_disk() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: only root reads the memory of another process");
        return;
    }
    if !engines().contains(&"process") {
        return;
    }
    let place = Place::new();
    let call = |arguments: &[&str]| {
        place
            .call(arguments)
            .env("OPENAI_API_KEY", "")
            .env("SANDFORGE_SECRETS_STORE", "key-file")
            .env("SANDFORGE_ENGINE", "process")
            .env("SANDFORGE_MIN_ISOLATION", "process")
    };
    let mut server = call(&["serve"]).spawn();
    let mut lines = BufReader::new(server.stderr.take().expect("it is a pipe"));
    let mut said = String::new();
    while !said.contains("serving on /") {
        assert_ne!(lines.read_line(&mut said).unwrap(), 0, "{said}");
    }
    thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    let pid = server.id();
    call(&["secret", "set", "-g", "openai"]).stdin(CANARY).output().exits(0);
    call(&["-q", "create", "--name", "box", "--credential", "openai"]).output().exits(0);
    for _ in 0..3 {
        let asked = "GET https://api.openai.com/v1/models";
        let output =
            call(&["exec", "box", "--", "python3", "-c", PROGRAM, asked]).output().exits(0);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(text.contains(" 200 heard GET /v1/models "), "{output}");
        assert!(!text.contains(CANARY), "{output}");
    }
    assert!(place.origin.asked.lock().unwrap().join("").contains(CANARY));
    assert!(found_in_memory(pid).contains(&"plain"), "what is in use is there to be found");

    // A sandbox that runs has what is kept now, and what is not kept no more.
    let asked = || {
        let asked = "GET https://api.openai.com/v1/models";
        let output =
            call(&["exec", "box", "--", "python3", "-c", PROGRAM, asked]).output().exits(0);
        String::from_utf8(output.stdout).unwrap()
    };
    let other = CANARY.replace("canary", "second");
    assert_ne!(other, CANARY);
    call(&["secret", "set", "-g", "openai"]).stdin(other.as_str()).output().exits(0);
    assert!(asked().contains(" 200 "));
    assert!(place.origin.asked.lock().unwrap().last().unwrap().contains(&other));
    call(&["secret", "rm", "-g", "openai"]).output().exits(0);
    let before = place.origin.asked.lock().unwrap().len();
    assert!(asked().contains(" 403 "));
    assert_eq!(place.origin.asked.lock().unwrap().len(), before);
    assert_eq!(found_on_disk(place.directory.path()), Vec::<std::path::PathBuf>::new());
    let mut left = found_in_memory(pid);
    for _ in 0..50 {
        if left.is_empty() {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(100));
        left = found_in_memory(pid);
    }
    call(&["rm", "--all"]).output().exits(0);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(left, Vec::<&str>::new());
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}
