//! Domains whose subdomains anybody can have.

/// Below each of these, anybody can have a host of their own: a credential for a pattern of such
/// hosts would be for all of them. From the private section of the public suffix list, the entries
/// of clouds, and what clouds give as addresses of tenants.
const SHARED: &[&str] = &include!("shared_suffixes.in");

/// The shared domain that hosts of `pattern` are below, where the pattern leaves open which tenant's
/// they are: `*.openai.azure.com`, and `*.com` too. `None` for an exact host.
pub fn shared_suffix(pattern: &str) -> Option<&'static str> {
    if !pattern.contains('*') {
        return None;
    }
    // What follows the last label that has a star is fixed.
    let labels: Vec<&str> = pattern.split('.').collect();
    let after = labels.iter().rposition(|label| label.contains('*')).map_or(0, |at| at + 1);
    let fixed = labels[after..].join(".");
    let is_below = |name: &str, of: &str| {
        name == of || name.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'))
    };
    SHARED.iter().copied().find(|shared| {
        // Hosts of `*.region.example.com` are tenants' where those of `*.example.com` are, and
        // `*.com` has all of them.
        fixed.is_empty() || is_below(&fixed, shared) || is_below(shared, &fixed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_tenants_is_known() {
        for (pattern, suffix) in [
            ("*.amazonaws.com", "amazonaws.com"),
            ("*.s3.eu-central-1.amazonaws.com", "amazonaws.com"),
            ("bedrock.*.amazonaws.com", "amazonaws.com"),
            ("*.openai.azure.com", "openai.azure.com"),
            ("*.github.io", "github.io"),
            ("**.vercel.app", "vercel.app"),
            ("my-*.vercel.app", "vercel.app"),
        ] {
            assert_eq!(shared_suffix(pattern), Some(suffix), "{pattern}");
        }
        assert!(shared_suffix("*.com").is_some());
        assert!(shared_suffix("*").is_some());
    }

    #[test]
    fn an_exact_host_and_ones_own_domain_are_not() {
        for pattern in
            ["acme.openai.azure.com", "*.example.org", "*.notvercel.app", "api.github.com"]
        {
            assert_eq!(shared_suffix(pattern), None, "{pattern}");
        }
    }
}
