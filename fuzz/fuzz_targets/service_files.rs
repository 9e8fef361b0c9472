//! Files of services: each mistake has a place and is told in one line; a service that was taken keeps
//! its promises.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use canonical::Authority;
use libfuzzer_sys::fuzz_target;
use services::{Catalogue, Kind, Service};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let catalogue = match Catalogue::default().with_file("s.toml", text) {
        Ok(catalogue) => catalogue,
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains(char::is_control), "{message:?}");
            let line = text.split('\n').nth(error.line as usize - 1).expect("there is that line");
            assert!(error.column as usize <= line.chars().count() + 1, "{message}");
            return;
        }
    };
    let names: Vec<&str> = catalogue.names().collect();
    let [name] = names[..] else { panic!("one file is one service") };
    check(catalogue.sample(name).expect("it is there"));
    let hostile = ["a", "a.example:8443", "*.example", "x\ny", "{a}", "", "a,b"];
    for value in hostile {
        let parameters = catalogue.parameters(name).expect("it is there");
        let given: BTreeMap<String, String> =
            parameters.iter().map(|one| (one.name.clone(), value.to_owned())).collect();
        if let Ok(service) = catalogue.get_with(name, &given) {
            check(&service);
        }
    }
    // With the built-in ones it is taken or collides.
    if let Ok(catalogue) = Catalogue::built_in().with_file("s.toml", text) {
        for variable in &catalogue.sample(name).expect("it is there").env {
            assert_eq!(catalogue.by_env(variable), Some(name));
        }
    }
});

fn check(service: &Service) {
    assert!(!service.slots.is_empty());
    for host in &service.inject_hosts {
        assert_eq!(Authority::parse(&host.to_string(), 1).as_ref(), Ok(host));
        assert!(host.port != 80 && !service.plain_hosts.iter().any(|plain| plain.matches(host)));
    }
    for length in [0, 7, 64, 10_000] {
        let placeholder = service.placeholder(Some(length), &[3; 32]);
        let is_pair = matches!(service.kind, Kind::Aws { .. });
        let is_unreserved =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || is_pair;
        assert!(placeholder.len() <= 4200 && placeholder.bytes().all(is_unreserved));
        let environment = service.environment(&placeholder, Some("http://gateway/proxy/s"));
        let names: BTreeSet<&String> = environment.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), environment.len(), "a variable is there twice");
        for (name, value) in &environment {
            assert!(!name.is_empty() && !name.contains(['=', '\0', '\n']), "{name:?}");
            assert!(!value.contains(char::is_control), "{name}: {value:?}");
        }
    }
}
