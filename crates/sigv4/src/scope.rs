//! For what a signature is good: a day, a region, a service.

use std::fmt;

use canonical::Host;

use crate::clock;
use crate::endpoint::Endpoint;

/// Longest region and longest service, in bytes.
const MAX_WORD: usize = 64;

/// Why a request may not be signed for what it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// The host belongs to another service.
    #[error(
        "the request is signed for the service {service}, which {host} is not: sign it for {expected}"
    )]
    Service {
        /// What it was signed for.
        service: String,
        /// Where it goes.
        host: String,
        /// What that host takes.
        expected: String,
    },
    /// The host is in another region.
    #[error(
        "the request is signed for the region {region}, and {host} is in {expected}: set AWS_REGION to it"
    )]
    Region {
        /// What it was signed for.
        region: String,
        /// Where it goes.
        host: String,
        /// Where that host is.
        expected: String,
    },
    /// What cannot be checked has to be named.
    #[error(
        "{host} is no host of AWS: which service and region it may be signed for has to be named in its service file"
    )]
    UnknownHost {
        /// Where it goes.
        host: String,
    },
    /// The credential is not for this service.
    #[error(
        "this credential does not sign for the service {0}; the service file names those it does"
    )]
    ServiceNotAllowed(String),
    /// The credential is not for this region.
    #[error(
        "this credential does not sign for the region {0}; the service file names those it does"
    )]
    RegionNotAllowed(String),
}

/// For what a signature is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    date: String,
    region: String,
    service: String,
}

impl Scope {
    /// What ends every scope.
    pub(crate) const END: &'static str = "aws4_request";

    /// One of its parts; `None` where one of them cannot be part of a scope.
    pub fn new(date: &str, region: &str, service: &str) -> Option<Self> {
        let scope = Self { date: date.into(), region: region.into(), service: service.into() };
        (clock::is_day(date) && is_word(region) && is_word(service)).then_some(scope)
    }

    /// Reads `DATE/REGION/SERVICE/aws4_request`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let scope = Self::new(parts.next()?, parts.next()?, parts.next()?)?;
        (parts.next() == Some(Self::END) && parts.next().is_none()).then_some(scope)
    }

    /// The day: `20150830`.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// The region: `eu-central-1`.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The service, as signatures call it: `bedrock`.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Whether a request to this host may be signed so. Service and region have to be those of the
    /// host, and among those that are allowed, where a list is not empty. For a host that is not AWS's
    /// both lists have to name what is signed for: nothing else tells.
    ///
    /// # Errors
    /// `ScopeError`.
    pub fn check(
        &self,
        host: &Host,
        services: &[String],
        regions: &[String],
    ) -> Result<(), ScopeError> {
        if !services.is_empty() && !services.contains(&self.service) {
            return Err(ScopeError::ServiceNotAllowed(self.service.clone()));
        }
        if !regions.is_empty() && !regions.contains(&self.region) {
            return Err(ScopeError::RegionNotAllowed(self.region.clone()));
        }
        let Some(endpoint) = host.name().and_then(Endpoint::of) else {
            return match services.is_empty() || regions.is_empty() {
                true => Err(ScopeError::UnknownHost { host: host.to_string() }),
                false => Ok(()),
            };
        };
        if !endpoint.takes_service(&self.service) {
            return Err(ScopeError::Service {
                service: self.service.clone(),
                host: host.to_string(),
                expected: endpoint.services(),
            });
        }
        if !endpoint.takes_region(&self.region) {
            return Err(ScopeError::Region {
                region: self.region.clone(),
                host: host.to_string(),
                expected: endpoint.regions(),
            });
        }
        Ok(())
    }

    /// Keys of S3 are signed as they are: encoded once, nothing folded.
    pub(crate) fn is_s3(&self) -> bool {
        matches!(self.service.as_str(), "s3" | "s3express" | "s3-object-lambda" | "s3-outposts")
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.date, self.region, self.service, Self::END)
    }
}

fn is_word(text: &str) -> bool {
    (1..=MAX_WORD).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
