//! Directory trees as tar streams and back, without leaving the directory.
//!
//! Both ends of the workspace transfer use this: the agent inside the guest and the host. It is
//! one crate so that what one end writes is what the other accepts, and so that the checks which
//! keep a hostile archive inside its directory exist once.
//!
//! - [`Name`]: what a member may be called. The only way from bytes of an archive to a path.
//! - [`Reader`]: members of a stream, with every length bounded before anything is allocated.
//! - [`Writer`]: members to a stream that stays valid whatever the files do meanwhile.
//! - [`LayerWriter`]: a layer of an image, with owners and with what is gone.
//! - [`Root`]: a directory, and the system calls that cannot leave it.
//! - [`walk()`]: a tree below a root in one order, with a bounded number of open files.
//! - [`pack`], [`Extract`]: the two together.
#![forbid(unsafe_code)]

mod extract;
mod layer;
mod name;
mod pack;
mod reader;
mod root;
mod walk;
mod writer;

pub use extract::{Directory, Existing, Extract, ExtractError, Sparse};
pub use layer::{Attributes, LayerWriter};
pub use name::{MAX_COMPONENT, MAX_NAME, Name, NameError, Printable};
pub use pack::{Answer, PackError, Packing, Passed, pack, pack_one};
pub use reader::{Kind, MAX_EXTENSION, Member, ReadError, Reader};
pub use root::{Inode, InodeKind, Root};
pub use walk::{Entry, Step, WalkError, walk};
pub use writer::Writer;
