//! How seldom the device is woken up, and wakes up its guest.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::guest::{CID, Guest, data_packet, is_readable, listening, packet};
use crate::virtio::Device as _;
use crate::virtio::vsock::Config;
use crate::virtio::vsock::device::{RECEIVE, TRANSMIT};
use crate::virtio::vsock::packet::{Header, Op, Ports};

const MANY: usize = 2000;
const PORT: u32 = 5;

/// Many connections of which the guest has said that it has this much room.
fn many(room: u32) -> (Guest, Vec<(Ports, UnixStream)>) {
    let needed = 2 * u64::try_from(MANY).unwrap() + 200;
    let limit = getrlimit(Resource::Nofile);
    assert!(
        limit.current.is_none_or(|limit| limit >= needed),
        "this test needs {needed} descriptors: ulimit -n {needed}"
    );
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(Config { max_connections: MANY, ..config });
    let hosts = (0..MANY).map(|_| {
        let host = UnixStream::connect_addr(&address).unwrap();
        let (request, _) = guest.receive_one();
        let ports = Ports { host: request.src_port, guest: request.dst_port };
        let (header, data) = packet(ports, Op::Response);
        guest.send_all(&[(Header { buf_alloc: room, ..header }, data)]);
        (ports, host)
    });
    let hosts = hosts.collect();
    while guest.wake() {}
    (guest, hosts)
}

/// Lets a device have its way for a while; how often it was woken up in that time.
fn wake_ups(guest: &mut Guest) -> u64 {
    let before = guest.device.metrics().snapshot().wake_ups;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        is_readable(guest.device.source().unwrap(), Duration::from_millis(50));
        guest.wake();
    }
    guest.device.metrics().snapshot().wake_ups - before
}

#[test]
fn many_idle_connections_wake_nobody() {
    let (mut guest, _hosts) = many(1000);
    assert_eq!(wake_ups(&mut guest), 0);
}

#[test]
fn many_connections_whose_guest_has_no_room_wake_nobody() {
    let (mut guest, mut hosts) = many(0);
    hosts.iter_mut().for_each(|(_, host)| host.write_all(&[1; 100]).unwrap());
    let questions = guest.receive_all();
    assert_eq!(questions.len(), MANY);
    assert_eq!(wake_ups(&mut guest), 0);
    let (ports, _) = hosts[MANY / 2];
    guest.say(ports, Op::CreditUpdate);
    assert_eq!(guest.receive_one().1.len(), 100, "and yet all is remembered");
}

#[test]
fn many_connections_whose_guest_has_no_buffers_wake_nobody() {
    let (mut guest, mut hosts) = many(1000);
    hosts.iter_mut().for_each(|(_, host)| host.write_all(&[1; 10]).unwrap());
    while guest.wake() {}
    assert_eq!(guest.take().len(), 256, "all buffers are full");
    assert_eq!(wake_ups(&mut guest), 0);
}

#[test]
fn many_hosts_that_do_not_read_wake_nobody() {
    let (mut guest, hosts) = many(1000);
    for (ports, _) in hosts.iter().take(20) {
        for _ in 0..5 {
            guest.send(*ports, &[7; 64 << 10]);
        }
    }
    guest.receive();
    assert_eq!(wake_ups(&mut guest), 0);
}

#[test]
fn many_closed_hosts_wake_nobody_once_the_guest_knows() {
    let (mut guest, hosts) = many(1000);
    drop(hosts);
    let mut known = 0;
    while known < MANY {
        let farewells = guest.receive();
        let ends = farewells.iter().filter(|(header, _)| header.flags == 3);
        let confirmations: Vec<_> = ends
            .map(|(header, _)| Ports { host: header.src_port, guest: header.dst_port })
            .map(|ports| packet(ports, Op::Reset))
            .collect();
        known += confirmations.len();
        guest.send_all(&confirmations);
    }
    assert_eq!(guest.device.connections(), 0);
    assert_eq!(wake_ups(&mut guest), 0);
}

#[test]
fn many_connections_exchange_data() {
    let (mut guest, mut hosts) = many(1000);
    for (number, (_, host)) in hosts.iter_mut().enumerate() {
        host.write_all(&u64::try_from(number).unwrap().to_le_bytes()).unwrap();
    }
    let mut echoed = 0;
    while echoed < MANY {
        let packets = guest.receive();
        assert!(!packets.is_empty(), "{echoed} of {MANY} arrived");
        let echoes: Vec<_> = packets
            .iter()
            .map(|(header, data)| {
                let ports = Ports { host: header.src_port, guest: header.dst_port };
                data_packet(ports, data)
            })
            .collect();
        echoed += echoes.len();
        guest.send_all(&echoes);
    }
    for (number, (_, host)) in hosts.iter_mut().enumerate() {
        use std::io::Read as _;
        let mut bytes = [0; 8];
        host.read_exact(&mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), u64::try_from(number).unwrap());
    }
}

#[test]
fn a_batch_is_one_interrupt_for_each_queue() {
    let mut guest = Guest::with_events(Config::new(CID));
    guest.offer_all();
    guest.driver.interrupt_after(RECEIVE, 1);
    guest.driver.interrupt_after(TRANSMIT, 1);
    let packets = vec![packet(Ports { host: 9, guest: 9 }, Op::Request); 100];
    guest.send_all(&packets);
    assert_eq!(guest.driver.interrupts(), 2);
    guest.send_all(&packets);
    assert_eq!(guest.driver.interrupts(), 0, "the driver did not ask for more");
}

#[test]
fn the_driver_says_when_there_are_packets_and_not_when_there_are_more_buffers_than_needed() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::with_events(config);
    guest.offer(3);
    guest.send_all(&[packet(Ports { host: 9, guest: 9 }, Op::Request)]);
    assert_eq!(guest.wanted(TRANSMIT), 1);
    assert_eq!(guest.wanted(RECEIVE), 0);
    let _hosts: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
    guest.wake();
    assert_eq!(guest.wanted(RECEIVE), 3, "one of three requests has no buffer");
}
