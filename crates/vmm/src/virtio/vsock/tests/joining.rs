//! How sockets of the host and of the guest come together.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::guest::{Guest, connected, listening, packet, serving};
use crate::virtio::vsock::Config;
use crate::virtio::vsock::packet::{Op, Ports};

const PORT: u32 = 2222;

fn connect(address: &std::os::unix::net::SocketAddr) -> UnixStream {
    UnixStream::connect_addr(address).unwrap()
}

/// Refuses the request that came.
fn refuse(guest: &mut Guest) -> Ports {
    let (header, _) = guest.receive_one();
    assert_eq!((header.op(), header.dst_port), (Some(Op::Request), PORT));
    let ports = Ports { host: header.src_port, guest: header.dst_port };
    guest.say(ports, Op::Reset);
    ports
}

/// Asks for a port that nobody serves, as an agent does that listens there now.
fn hint(guest: &mut Guest, port: u32) {
    let ports = Ports { host: port, guest: 40_000 };
    guest.say(ports, Op::Request);
}

fn read(socket: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_connected_socket_is_joined_to_its_port() {
    let (config, mut host) = connected(PORT);
    let mut guest = Guest::new(config);
    let ports = guest.accept();
    assert_eq!(ports.guest, PORT);
    host.write_all(b"ping").unwrap();
    assert_eq!(guest.receive_one().1, b"ping");
    guest.send(ports, b"pong");
    assert_eq!(read(&mut host, 4), b"pong");
}

#[test]
fn what_was_written_before_anybody_listened_arrives() {
    let (config, mut host) = connected(PORT);
    host.write_all(b"early").unwrap();
    drop(host);
    let mut guest = Guest::new(config);
    guest.accept();
    let packets = guest.receive();
    assert!(packets.iter().any(|(_, data)| data == b"early"), "{packets:?}");
}

#[test]
fn a_refused_one_is_tried_again_after_a_while() {
    let (config, _host) = connected(PORT);
    let mut guest = Guest::new(config);
    let first = refuse(&mut guest);
    let begun = Instant::now();
    guest.wait();
    assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
    let second = guest.accept();
    assert_ne!(first.host, second.host, "a late answer to the first would be taken for another");
}

#[test]
fn a_refused_one_is_tried_again_when_the_guest_asks_for_the_same_port() {
    let (config, _host) = connected(PORT);
    let mut guest = Guest::new(config);
    refuse(&mut guest);
    hint(&mut guest, PORT);
    assert_eq!(guest.ops(), [Op::Reset, Op::Request]);
}

#[test]
fn asking_for_another_port_is_no_hint() {
    let (config, _host) = connected(PORT);
    let mut guest = Guest::new(config);
    refuse(&mut guest);
    hint(&mut guest, PORT + 1);
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn one_of_many_is_tried_and_the_others_follow_it() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(config);
    let _hosts: Vec<_> = (0..10).map(|_| connect(&address)).collect();
    let requests = guest.receive();
    assert_eq!(requests.len(), 10);
    let refusals: Vec<_> = requests
        .iter()
        .map(|(header, _)| Ports { host: header.src_port, guest: header.dst_port })
        .map(|ports| packet(ports, Op::Reset))
        .collect();
    guest.send_all(&refusals);
    guest.wait();
    guest.accept();
    assert_eq!(guest.ops(), [Op::Request; 9]);
}

#[test]
fn one_that_waits_is_given_up_when_its_other_end_is_closed() {
    let (config, host) = connected(PORT);
    let mut guest = Guest::new(config);
    refuse(&mut guest);
    drop(host);
    guest.wait();
    assert_eq!(guest.device.connections(), 0);
    hint(&mut guest, PORT);
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn each_connection_to_a_listening_socket_is_joined() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(config);
    let mut hosts: Vec<_> = (0..3).map(|_| connect(&address)).collect();
    for (header, _) in guest.receive() {
        guest.say(Ports { host: header.src_port, guest: header.dst_port }, Op::Response);
    }
    for (number, host) in (0..).zip(&mut hosts) {
        host.write_all(&[number]).unwrap();
        assert_eq!(guest.receive_one().1, [number]);
    }
}

#[test]
fn more_than_the_bound_wait_at_the_listening_socket() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(Config { max_connections: 2, ..config });
    let hosts: Vec<_> = (0..3).map(|_| connect(&address)).collect();
    assert_eq!(guest.ops(), [Op::Request; 2]);
    drop(hosts);
    // The first two were never agreed on.
    let ports = guest.device.connections();
    assert_eq!(ports, 2);
}

#[test]
fn whoever_waits_at_the_listening_socket_gets_the_next_place() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(Config { max_connections: 1, ..config });
    let first = connect(&address);
    let ports = guest.accept();
    let _second = connect(&address);
    assert_eq!(guest.ops(), []);
    guest.say(ports, Op::Reset);
    assert_eq!(guest.ops(), [Op::Request]);
    drop(first);
}

#[test]
fn a_service_gets_the_connections_to_its_port() {
    let (config, service) = serving(80);
    let mut guest = Guest::new(config);
    let ports = guest.connect(80, 1234).expect("the host accepts it");
    let (told, mut host) = service.take().unwrap();
    assert_eq!(told, ports);
    guest.send(ports, b"get");
    assert_eq!(read(&mut host, 3), b"get");
    host.write_all(b"got").unwrap();
    assert_eq!(guest.receive_one().1, b"got");
}

#[test]
fn a_port_without_a_service_is_refused() {
    let (config, _service) = serving(80);
    let mut guest = Guest::new(config);
    assert_eq!(guest.connect(81, 1234), None);
}

#[test]
fn a_service_that_is_gone_is_refused() {
    let (config, service) = serving(80);
    let mut guest = Guest::new(config);
    drop(service);
    assert_eq!(guest.connect(80, 1234), None);
}

#[test]
fn a_service_that_takes_none_is_refused_when_its_socket_is_full() {
    let (config, service) = serving(80);
    let mut guest = Guest::new(config);
    let accepted = (0..1000).take_while(|port| guest.connect(80, *port).is_some()).count();
    assert!((1..1000).contains(&accepted), "{accepted}");
    drop(service);
}

#[test]
fn the_guest_is_refused_beyond_the_bound() {
    let (config, _service) = serving(80);
    let mut guest = Guest::new(Config { max_connections: 2, ..config });
    let accepted: Vec<_> = (0..4).map(|port| guest.connect(80, port).is_some()).collect();
    assert_eq!(accepted, [true, true, false, false]);
}

#[test]
fn a_new_driver_finds_those_that_wait() {
    let (config, mut host) = connected(PORT);
    let mut guest = Guest::new(config);
    refuse(&mut guest);
    let mut guest = guest.restart();
    guest.accept();
    host.write_all(b"hello").unwrap();
    assert_eq!(guest.receive_one().1, b"hello");
}

#[test]
fn a_new_driver_is_asked_what_the_one_before_did_not_answer() {
    let (config, _host) = connected(PORT);
    let mut guest = Guest::new(config);
    assert_eq!(guest.ops(), [Op::Request]);
    let mut guest = guest.restart();
    guest.accept();
}

#[test]
fn a_new_driver_has_no_connections_of_the_one_before() {
    let (config, mut host) = connected(PORT);
    let mut guest = Guest::new(config);
    let ports = guest.accept();
    let mut guest = guest.restart();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    guest.send(ports, b"late");
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn listening_sockets_outlive_a_driver() {
    let (config, address) = listening(PORT);
    let mut guest = Guest::new(config).restart();
    let _host = connect(&address);
    guest.accept();
}

#[test]
fn a_reserved_cid_is_no_guests() {
    for cid in [0, 1, 2, u32::MAX] {
        let error = crate::virtio::vsock::Vsock::new(Config::new(cid)).unwrap_err();
        assert_eq!(error.to_string(), format!("{cid} is reserved and no guest's CID"));
    }
}
