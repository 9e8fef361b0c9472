//! Which of the images of a list.

use std::fmt;
use std::str::FromStr;

/// An operating system, an architecture and sometimes a variant of it, as images name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …: the names of Go.
    pub architecture: String,
    /// `v8`, `v7`; for any when it is not there.
    pub variant: Option<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: linux/amd64, linux/arm64 and linux/arm/v7 are")]
pub struct PlatformError(String);

impl Platform {
    /// What this host runs without emulation.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// How well an image of `other` serves who wants this; nothing where it does not. 64-bit Arm
    /// has one variant that everybody means, v8.
    pub(crate) fn suits(&self, other: &Self) -> Option<u8> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        let usual = match self.architecture.as_str() {
            "arm64" => "v8",
            "amd64" => "v1",
            "arm" => "v7",
            _ => "",
        };
        let offered = other.variant.as_deref().unwrap_or(usual);
        match &self.variant {
            Some(wanted) => (wanted == offered).then_some(2),
            None if offered == usual => Some(2),
            // A later amd64 than the first need not run here; an older Arm does.
            None => (self.architecture == "arm").then_some(1),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let mut parts = text.split('/').map(|part| {
            let fits = (1..=32).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            fits.then(|| part.to_ascii_lowercase()).ok_or_else(|| PlatformError(text.into()))
        });
        let missing = || PlatformError(text.into());
        let os = parts.next().ok_or_else(missing)??;
        let architecture = parts.next().ok_or_else(missing)??;
        let variant = parts.next().transpose()?;
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64".into(),
            "aarch64" => "arm64".into(),
            _ => architecture,
        };
        match parts.next() {
            None => Ok(Self { os, architecture, variant }),
            Some(_) => Err(missing()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suits(wanted: &str, offered: &str) -> Option<u8> {
        wanted.parse::<Platform>().unwrap().suits(&offered.parse().unwrap())
    }

    #[test]
    fn a_variant_counts_where_it_is_asked_for() {
        assert_eq!(suits("linux/arm64", "linux/arm64/v8"), Some(2));
        assert_eq!(suits("linux/arm64/v8", "linux/arm64"), Some(2));
        assert_eq!(suits("linux/arm64/v9", "linux/arm64/v8"), None);
        assert_eq!(suits("linux/amd64", "linux/amd64/v3"), None);
        assert_eq!(suits("linux/arm", "linux/arm/v6"), Some(1));
        assert_eq!(suits("linux/amd64", "windows/amd64"), None);
        assert_eq!(suits("linux/aarch64", "linux/arm64"), Some(2));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "linux/amd64/v1/x", "linux/a b", "/amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
