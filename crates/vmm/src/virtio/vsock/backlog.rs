//! Data from the guest that a socket does not take yet.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::{fmt, io};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use crate::virtio::buffers::Buffers;

/// The data, in order. The credit that the guest has bounds it.
#[derive(Default)]
pub(super) struct Backlog(VecDeque<u8>);

/// Only how much: what a guest says is nobody else's business.
impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts data behind what there is.
    pub(super) fn keep(&mut self, mut data: Buffers<'_>) {
        let kept = self.len();
        self.0.resize(kept + usize::try_from(data.len()).expect("usize has 64 bits"), 0);
        let (front, back) = self.0.as_mut_slices();
        let kept_front = kept.min(front.len());
        data.take_into(&mut front[kept_front..]);
        data.take_into(&mut back[kept - kept_front..]);
    }

    /// Sends what a socket takes now.
    pub(super) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (front, back) = self.0.as_slices();
        let vectors = [io::IoSlice::new(front), io::IoSlice::new(back)];
        let mut nothing = SendAncillaryBuffer::default();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(sendmsg(socket, &vectors, &mut nothing, flags)?)
    }

    /// Leaves the first bytes behind, and all memory with the last of them: most connections
    /// never need it again.
    pub(super) fn advance(&mut self, count: usize) {
        self.0.drain(..count);
        if self.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::virtio::driver::memory;

    proptest! {
        #[test]
        fn what_is_kept_goes_out_in_order(
            steps in prop::collection::vec((0u32..400, 0usize..400), 1..40),
        ) {
            let memory = memory();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut backlog = Backlog::default();
            let (mut kept, mut sent) = (Vec::new(), 0);
            for (number, (length, count)) in (0..).zip(steps) {
                let byte = |at: u32| u8::try_from(at % 251).unwrap() ^ number;
                let data: Vec<u8> = (0..length).map(byte).collect();
                memory.write_slice(&data, GuestAddress(0)).unwrap();
                let halves = [(0, length / 2), (length / 2, length - length / 2)];
                let descriptors =
                    halves.map(|(at, length)| Descriptor::new(at.into(), length, 0, 0));
                backlog.keep(Buffers::gather(&memory, &descriptors).unwrap());
                kept.extend(data);
                let count = count.min(backlog.len());
                backlog.advance(count);
                sent += count;
                prop_assert_eq!(backlog.len(), kept.len() - sent);
            }
            let count = backlog.send(ours.as_fd()).unwrap();
            prop_assert_eq!(count, kept.len() - sent);
            drop(ours);
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).unwrap();
            prop_assert_eq!(&received, &kept[sent..]);
        }
    }

    #[test]
    fn its_data_is_not_shown() {
        let mut backlog = Backlog::default();
        backlog.0.extend(b"secret");
        assert_eq!(format!("{backlog:?}"), "6 bytes");
    }
}
