//! How connections end, in one direction or in both.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::guest::{Guest, RECEIVES_NO_MORE, SENDS_NO_MORE, connected};
use crate::virtio::vsock::packet::{Op, Ports};

const PORT: u32 = 5;
/// The data of the largest packet.
const MAX_DATA: usize = 64 << 10;
const BOTH: u32 = RECEIVES_NO_MORE | SENDS_NO_MORE;

fn joined() -> (Guest, Ports, UnixStream) {
    let (config, host) = connected(PORT);
    let mut guest = Guest::new(config);
    let ports = guest.accept();
    (guest, ports, host)
}

/// Takes the shutdowns that came; what they say together.
fn shutdowns(guest: &mut Guest) -> u32 {
    let packets = guest.receive();
    assert!(packets.iter().all(|(header, _)| header.op() == Some(Op::Shutdown)), "{packets:?}");
    packets.iter().fold(0, |flags, (header, _)| flags | header.flags)
}

fn read_to_end(host: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_host_that_sends_no_more_still_receives() {
    let (mut guest, ports, mut host) = joined();
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"last");
    assert_eq!(packets[1].0.op(), Some(Op::Shutdown));
    assert_eq!(packets[1].0.flags, SENDS_NO_MORE);
    guest.send(ports, b"answer");
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn a_guest_that_sends_no_more_still_receives() {
    let (mut guest, ports, mut host) = joined();
    guest.send(ports, b"last");
    guest.shut(ports, SENDS_NO_MORE);
    assert_eq!(read_to_end(&mut host), b"last");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.receive_one().1, b"answer");
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    let (mut guest, ports, mut host) = joined();
    guest.shut(ports, RECEIVES_NO_MORE);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send(ports, b"still here");
    let mut bytes = [0; 10];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}

#[test]
fn a_host_that_receives_no_more_is_told_of() {
    let (mut guest, ports, host) = joined();
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(ports, b"lost");
    assert_eq!(shutdowns(&mut guest), RECEIVES_NO_MORE);
    guest.send(ports, b"lost, too");
    assert_eq!(guest.ops(), [], "it may not have heard of it when it sent that");
}

#[test]
fn a_guest_that_closes_is_reset_at_once_and_the_host_gets_all() {
    let (mut guest, ports, mut host) = joined();
    let data = vec![7; MAX_DATA];
    for _ in 0..5 {
        guest.send(ports, &data);
    }
    guest.shut(ports, BOTH);
    assert!(guest.ops().contains(&Op::Reset));
    let reader = std::thread::spawn(move || read_to_end(&mut host));
    while guest.device.connections() > 0 {
        guest.wait();
    }
    assert_eq!(reader.join().unwrap().len(), 5 * MAX_DATA);
}

#[test]
fn a_guest_that_resets_is_forgotten_and_the_host_gets_all() {
    let (mut guest, ports, mut host) = joined();
    guest.send(ports, b"last words");
    guest.say(ports, Op::Reset);
    assert_eq!(read_to_end(&mut host), b"last words");
    assert_eq!(guest.ops(), []);
}

#[test]
fn a_host_that_never_reads_what_a_closed_guest_sent_keeps_its_place_only() {
    let (mut guest, ports, host) = joined();
    for _ in 0..5 {
        guest.send(ports, &vec![7; MAX_DATA]);
    }
    guest.say(ports, Op::Reset);
    assert_eq!(guest.device.connections(), 1);
    drop(host);
    guest.wait();
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn a_host_that_closes_is_taken_leave_of() {
    let (mut guest, ports, host) = joined();
    drop(host);
    assert_eq!(shutdowns(&mut guest), BOTH);
    guest.say(ports, Op::Reset);
    assert_eq!(guest.device.connections(), 0);
    assert_eq!(guest.ops(), []);
}

#[test]
fn a_host_that_closes_after_its_end_is_taken_leave_of() {
    let (mut guest, _, host) = joined();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(shutdowns(&mut guest), SENDS_NO_MORE);
    drop(host);
    assert_eq!(shutdowns(&mut guest), BOTH);
}

#[test]
fn two_that_both_send_no_more_take_leave() {
    let (mut guest, ports, mut host) = joined();
    guest.shut(ports, SENDS_NO_MORE);
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(shutdowns(&mut guest), BOTH);
    guest.say(ports, Op::Reset);
    assert_eq!(read_to_end(&mut host), b"");
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn a_guest_that_does_not_take_leave_is_reset_after_two_seconds() {
    let (mut guest, _, host) = joined();
    drop(host);
    assert_eq!(shutdowns(&mut guest), BOTH);
    let begun = Instant::now();
    while guest.device.connections() > 0 {
        guest.wait();
    }
    assert!((1900..4000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(guest.ops(), [Op::Reset]);
    std::thread::sleep(Duration::from_millis(150));
    assert!(!guest.wake(), "nobody waits for the clock any more");
}

#[test]
fn data_behind_the_end_is_answered_by_a_reset() {
    let (mut guest, ports, _host) = joined();
    guest.shut(ports, SENDS_NO_MORE);
    guest.send(ports, b"more");
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn a_port_can_be_used_again_while_the_host_still_reads_what_came_before() {
    let (config, service) = super::guest::serving(80);
    let mut guest = Guest::new(config);
    let ports = guest.connect(80, 1000).unwrap();
    let (_, mut first) = service.take().unwrap();
    for _ in 0..5 {
        guest.send(ports, &vec![1; MAX_DATA]);
    }
    guest.shut(ports, BOTH);
    guest.receive();
    assert_eq!(guest.connect(80, 1000), Some(ports));
    let (_, mut second) = service.take().unwrap();
    guest.send(ports, &[2]);
    guest.shut(ports, BOTH);
    assert_eq!(read_to_end(&mut second), [2]);
    let reader = std::thread::spawn(move || read_to_end(&mut first));
    while guest.device.connections() > 0 {
        guest.wait();
    }
    assert_eq!(reader.join().unwrap(), vec![1; 5 * MAX_DATA]);
}
