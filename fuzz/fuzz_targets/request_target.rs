//! Hosts, authorities, paths and queries as a guest writes them: what is taken has one form, which is
//! taken again as the same.
#![no_main]

use canonical::{Authority, Leniency, Path, Query};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(authority) = Authority::parse(input, 443) {
        assert_eq!(Authority::parse(&authority.to_string(), 1), Ok(authority));
    }
    if let Ok(query) = Query::parse(input) {
        assert_eq!(Query::parse(query.as_str()), Ok(query));
    }
    for bits in 0..8 {
        let leniency = Leniency {
            encoded_separators: bits & 1 != 0,
            parameters: bits & 2 != 0,
            empty_segments: bits & 4 != 0,
        };
        let Ok(path) = Path::parse(input, leniency) else { continue };
        assert!(!path.segments().iter().any(|segment| segment == "." || segment == ".."));
        assert!(path.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(Path::parse(path.as_str(), leniency), Ok(path));
    }
});
