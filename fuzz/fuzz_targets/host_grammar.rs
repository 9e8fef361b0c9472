//! Names of hosts: one spelling, in which the C library's reader of addresses sees what we see.
#![no_main]

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr};

use canonical::{Authority, Host};
use libfuzzer_sys::fuzz_target;

unsafe extern "C" {
    // libc's own crate leaves it out: it takes `127.1`, `0x7f.1` and `2130706433` for addresses.
    fn inet_aton(text: *const libc::c_char, address: *mut libc::in_addr) -> libc::c_int;
}

fn as_c_reads_it(text: &str) -> Option<Ipv4Addr> {
    let text = CString::new(text).ok()?;
    let mut address = libc::in_addr { s_addr: 0 };
    // SAFETY: both point to what they should for as long as the call takes.
    let is_one = unsafe { inet_aton(text.as_ptr(), &mut address) } != 0;
    is_one.then(|| Ipv4Addr::from(u32::from_be(address.s_addr)))
}

fuzz_target!(|input: &str| {
    match Host::parse(input) {
        Ok(Host::Name(name)) => {
            let text = name.as_str();
            assert_eq!(as_c_reads_it(text), None, "{text}");
            assert!(text.parse::<IpAddr>().is_err() && text.len() <= 253);
            assert!(
                text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
            );
            assert!(name.labels().all(|label| (1..=63).contains(&label.len())));
            assert_eq!(text, input.strip_suffix('.').unwrap_or(input).to_ascii_lowercase());
        }
        Ok(Host::Address(IpAddr::V4(address))) => {
            assert_eq!(as_c_reads_it(input), Some(address));
            assert_eq!(address.to_string(), input);
        }
        Ok(Host::Address(IpAddr::V6(address))) => {
            assert_eq!(input, format!("[{}]", &input[1..input.len() - 1]));
            assert_eq!(input[1..input.len() - 1].parse(), Ok(address));
        }
        Err(_) => {}
    }
    if let Ok(authority) = Authority::parse(input, 443) {
        assert_ne!(authority.port, 0);
        let shown = authority.to_string();
        assert_eq!(Authority::parse(&shown, 1), Ok(authority));
        assert!(!shown.contains(['@', '/', '\\', '%', ' ', '#', '?']));
    }
});
