//! How often one caller may ask, and one address may fail to say who it is.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use api::{Code, Problem};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::Limits;

/// Buckets, filled over time and emptied by requests.
#[derive(Debug)]
pub(crate) struct Rates {
    callers: DefaultKeyedRateLimiter<String>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
}

impl Rates {
    pub(crate) fn new(limits: &Limits) -> Self {
        let at_least_one = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let requests = Quota::per_second(at_least_one(limits.requests_per_second))
            .allow_burst(at_least_one(limits.burst));
        let failures = Quota::per_second(at_least_one(limits.failures_per_second));
        Self {
            callers: RateLimiter::keyed(requests),
            failures: RateLimiter::keyed(failures),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request of this caller.
    pub(crate) fn request(&self, subject: &str) -> Result<(), Problem> {
        self.callers.check_key(&subject.to_owned()).map_err(|until| {
            limited("the caller's requests", until.wait_time_from(self.clock.now()))
        })
    }

    /// Counts a failed authentication from this address. One that succeeds is never refused for
    /// others that failed.
    pub(crate) fn failure(&self, address: IpAddr) -> Result<(), Problem> {
        self.failures.check_key(&network(address)).map_err(|until| {
            limited("failed authentications", until.wait_time_from(self.clock.now()))
        })
    }

    /// Forgets who has not been here for a while.
    pub(crate) fn forget(&self) {
        self.callers.retain_recent();
        self.failures.retain_recent();
        self.callers.shrink_to_fit();
        self.failures.shrink_to_fit();
    }
}

/// Whoever has one IPv6 address has its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        v4 => v4,
    }
}

fn limited(what: &str, wait: Duration) -> Problem {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Problem::new(Code::RateLimited, format!("{what} are too many"))
        .with_retry_after_sec(seconds.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_does_not_use_up_what_is_anothers() {
        let limits = Limits { requests_per_second: 1, burst: 2, ..Limits::default() };
        let rates = Rates::new(&limits);
        assert!(rates.request("a").is_ok() && rates.request("a").is_ok());
        let problem = rates.request("a").unwrap_err();
        assert_eq!((problem.code, problem.retry_after_sec()), (Code::RateLimited, Some(1)));
        assert!(rates.request("b").is_ok());
    }

    #[test]
    fn addresses_of_one_network_are_counted_together() {
        let rates = Rates::new(&Limits { failures_per_second: 1, ..Limits::default() });
        assert!(rates.failure("2001:db8::1".parse().unwrap()).is_ok());
        assert!(rates.failure("2001:db8::2".parse().unwrap()).is_err());
        assert!(rates.failure("2001:db8:0:1::1".parse().unwrap()).is_ok());
        assert!(rates.failure("192.0.2.1".parse().unwrap()).is_ok());
        assert!(rates.failure("::ffff:192.0.2.1".parse().unwrap()).is_err());
    }
}
