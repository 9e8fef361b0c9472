//! OCI registries: an image comes into a directory that is an OCI image layout. Nothing is in it under
//! its final name before its length and digest were found right, nobody is asked before the policy was,
//! and a credential goes to the registry and to a token service that configuration names, nowhere else.

#![forbid(unsafe_code)]

mod blob;
pub mod challenge;
mod credentials;
mod digest;
mod error;
mod helper;
mod layout;
pub mod manifest;
mod name;
mod platform;
mod policy;
mod progress;
mod pull;
mod retry;
mod session;
mod settings;
mod shown;
mod signature;
mod upstream;

pub use credentials::{Credentials, CredentialsError, Login};
pub use digest::{Digest, DigestError};
pub use error::PullError;
pub use helper::HelperError;
pub use name::{NameError, Source, Version};
pub use platform::{Platform, PlatformError};
pub use policy::{Allow, Contact, Pattern, PatternError, Purpose, Rules};
pub use progress::{Progress, Silent};
pub use pull::{Limits, Pull, Pulled, pull};
pub use settings::{Settings, SettingsError};
pub use signature::{KeyError, PublicKey, SignatureError};
pub use upstream::{Upstream, UpstreamError};
