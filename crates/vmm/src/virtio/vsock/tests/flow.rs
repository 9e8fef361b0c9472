//! Data, and who may send how much of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::guest::{Guest, connected, data_packet, listening, packet};
use crate::virtio::vsock::credit::BUFFER;
use crate::virtio::vsock::device::TRANSMIT;
use crate::virtio::vsock::packet::{HEADER, Header, Op, Ports};

const PORT: u32 = 5;
/// The data of the largest packet.
const MAX_DATA: usize = 64 << 10;

fn joined() -> (Guest, Ports, UnixStream) {
    let (config, host) = connected(PORT);
    let mut guest = Guest::new(config);
    let ports = guest.accept();
    (guest, ports, host)
}

/// Bytes of which none looks like its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// Says how much room the guest has.
fn tell(guest: &mut Guest, ports: Ports, buf_alloc: u32, fwd_cnt: u32) {
    let (header, data) = packet(ports, Op::CreditUpdate);
    guest.send_all(&[(Header { buf_alloc, fwd_cnt, ..header }, data)]);
}

/// Sends until the host's socket is full and so is the device; how much that was.
fn fill(guest: &mut Guest, ports: Ports) -> usize {
    let before = guest.device.metrics().snapshot().bytes_from_guest;
    let data = pattern(MAX_DATA);
    loop {
        let held = held(guest);
        let rest = usize::try_from(BUFFER).unwrap() - held;
        if rest == 0 {
            break;
        }
        guest.send(ports, &data[..rest.min(MAX_DATA)]);
        guest.receive();
    }
    usize::try_from(guest.device.metrics().snapshot().bytes_from_guest - before).unwrap()
}

/// What the device holds for a host that does not read, by its own words.
fn held(guest: &mut Guest) -> usize {
    let ports = Ports { host: 1 << 30, guest: PORT };
    guest.say(ports, Op::CreditRequest);
    let (header, _) = guest.receive().pop().unwrap();
    let sent = guest.device.metrics().snapshot().bytes_from_guest;
    usize::try_from(sent).unwrap() - usize::try_from(header.fwd_cnt).unwrap()
}

fn read_available(host: &mut UnixStream) -> Vec<u8> {
    host.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    if let Err(error) = host.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    bytes
}

#[test]
fn a_packet_is_as_large_as_its_buffer() {
    let (mut guest, _, mut host) = joined();
    host.write_all(&pattern(10_000)).unwrap();
    let packets = guest.receive();
    let lengths: Vec<_> = packets.iter().map(|(_, data)| data.len()).collect();
    assert_eq!(lengths, [4096 - HEADER, 4096 - HEADER, 10_000 - 2 * (4096 - HEADER)]);
    let data: Vec<u8> = packets.into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(data, pattern(10_000));
}

#[test]
fn every_link_gets_its_turn() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(config);
    let mut hosts: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
    let requests = guest.receive();
    for (header, _) in &requests {
        guest.say(Ports { host: header.src_port, guest: header.dst_port }, Op::Response);
    }
    for host in &mut hosts {
        host.write_all(&pattern(3 * 4096 - 3 * HEADER)).unwrap();
    }
    let order: Vec<_> = guest.receive().iter().map(|(header, _)| header.src_port).collect();
    assert_eq!(order[..3], order[3..6]);
    assert_eq!(order[..3], order[6..9]);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let (mut guest, ports, mut host) = joined();
    tell(&mut guest, ports, 10, 0);
    host.write_all(b"more than ten").unwrap();
    let data: Vec<_> = guest.receive().into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(data, b"more than ");
    tell(&mut guest, ports, 10, 10);
    let data: Vec<_> = guest.receive().into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(data, b"ten");
}

#[test]
fn a_guest_without_room_is_asked_once() {
    let (mut guest, ports, mut host) = joined();
    tell(&mut guest, ports, 10, 0);
    host.write_all(&pattern(100)).unwrap();
    assert_eq!(guest.ops(), [Op::Data, Op::CreditRequest]);
    for room in 11..15 {
        tell(&mut guest, ports, room, 0);
        assert_eq!(guest.ops(), [Op::Data], "it said that there is little");
    }
    tell(&mut guest, ports, 15, 14);
    assert_eq!(guest.ops(), [Op::Data, Op::CreditRequest], "there was much in between");
}

#[test]
fn a_guest_whose_counts_make_no_sense_gets_nothing() {
    let (mut guest, ports, mut host) = joined();
    tell(&mut guest, ports, 1000, 5);
    host.write_all(b"anything").unwrap();
    assert_eq!(guest.ops(), [Op::CreditRequest]);
}

#[test]
fn the_guest_hears_of_room_when_it_knows_of_less_than_half() {
    let (mut guest, ports, mut host) = joined();
    let mut sent = 0;
    while sent < BUFFER / 2 {
        guest.send(ports, &pattern(16 << 10));
        sent += 16 << 10;
        read_available(&mut host);
        assert_eq!(guest.ops(), [], "after {sent} bytes");
    }
    guest.send(ports, b"x");
    let (header, _) = guest.receive_one();
    assert_eq!(header.op(), Some(Op::CreditUpdate));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER, sent + 1));
}

#[test]
fn a_guest_that_asks_for_room_hears_of_it() {
    let (mut guest, ports, _host) = joined();
    guest.send(ports, b"four");
    guest.say(ports, Op::CreditRequest);
    let (header, _) = guest.receive_one();
    assert_eq!((header.op(), header.fwd_cnt), (Some(Op::CreditUpdate), 4));
}

#[test]
fn what_a_slow_host_does_not_take_is_kept() {
    let (mut guest, ports, mut host) = joined();
    let sent = fill(&mut guest, ports);
    let mut data = Vec::new();
    while data.len() < sent {
        data.extend(read_available(&mut host));
        guest.wake();
    }
    assert_eq!(data.len(), sent);
    let expected = pattern(MAX_DATA);
    assert_eq!(data[..MAX_DATA], expected);
}

#[test]
fn a_host_that_reads_again_gives_the_guest_room_again() {
    let (mut guest, ports, mut host) = joined();
    fill(&mut guest, ports);
    read_available(&mut host);
    guest.wait();
    assert_eq!(guest.ops(), [Op::CreditUpdate]);
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_is_reset() {
    let (mut guest, ports, host) = joined();
    fill(&mut guest, ports);
    guest.send(ports, b"x");
    assert_eq!(guest.ops(), [Op::Reset]);
    drop(host);
}

#[test]
fn a_packet_may_lie_in_pieces() {
    let (mut guest, ports, mut host) = joined();
    let data = pattern(1000);
    let (header, _) = data_packet(ports, &data);
    guest.transmit(&[&header.to_bytes()[..], &data].concat(), 33);
    guest.kick(TRANSMIT);
    assert_eq!(read_available(&mut host), data);
}

#[test]
fn data_in_pieces_is_kept_in_order_for_a_slow_host() {
    let (mut guest, ports, mut host) = joined();
    let first = fill(&mut guest, ports);
    let mut data = read_available(&mut host);
    guest.wait();
    while data.len() < first {
        data.extend(read_available(&mut host));
        guest.wake();
    }
    let more = pattern(60_000);
    let (header, _) = data_packet(ports, &more);
    for _ in 0..6 {
        guest.transmit(&[&header.to_bytes()[..], &more].concat(), 1500);
        guest.kick(TRANSMIT);
    }
    let mut data = Vec::new();
    while data.len() < 6 * more.len() {
        data.extend(read_available(&mut host));
        guest.wake();
    }
    assert!(data == more.repeat(6));
}
