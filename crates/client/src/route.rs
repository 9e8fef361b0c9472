//! The routes of the API, by the names that `api` gives them.

use api::{ROUTES, Route};

/// The route of this id. In a `const` an unknown one does not compile.
pub(crate) const fn route(id: &str) -> &'static Route {
    let mut index = 0;
    while index < ROUTES.len() {
        if same(ROUTES[index].id.as_bytes(), id.as_bytes()) {
            return &ROUTES[index];
        }
        index += 1;
    }
    panic!("the API has no route of this id")
}

const fn same(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut index = 0;
    while index < left.len() {
        if left[index] != right[index] {
            return false;
        }
        index += 1;
    }
    true
}

/// The path with its parameters filled in, each encoded so that it stays one segment.
pub(crate) fn path(route: &Route, parameters: &[&str]) -> String {
    let mut path = String::new();
    let mut parameters = parameters.iter();
    for segment in route.path.split('/').skip(1) {
        path.push('/');
        match segment.starts_with('{') {
            true => encode(parameters.next().copied().unwrap_or_default(), &mut path),
            false => path.push_str(segment),
        }
    }
    debug_assert!(parameters.next().is_none(), "{route:?} has fewer parameters");
    path
}

fn encode(segment: &str, path: &mut String) {
    // A name of dots alone would be a step in the path.
    let dots = segment.bytes().all(|byte| byte == b'.');
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                path.push(char::from(byte));
            }
            b'.' if !dots => path.push('.'),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_stays_one_segment_whatever_is_in_it() {
        let get = |name| path(const { route("get_sandbox") }, &[name]);
        assert_eq!(get("a-b_c.d"), "/v1/sandboxes/a-b_c.d");
        assert_eq!(get("a/b?c#d e%"), "/v1/sandboxes/a%2Fb%3Fc%23d%20e%25");
        assert_eq!(get(".."), "/v1/sandboxes/%2E%2E");
        assert_eq!(get("ü"), "/v1/sandboxes/%C3%BC");
    }
}
