//! Images in layers, against judges that are not ours: the host's kernel stacks them, `fsck.erofs`
//! and `veritysetup` check them, `umoci` and `skopeo` read what we write and write what we read.

mod attack;
mod judge;
mod make;
mod memory;
mod store;
