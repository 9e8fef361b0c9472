//! Packets that are none, and what comes of them.

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

use super::guest::{CID, Guest, connected, data_packet, packet};
use crate::virtio::DeviceError;
use crate::virtio::driver::{DATA, readable, writable};
use crate::virtio::vsock::Config;
use crate::virtio::vsock::device::{RECEIVE, TRANSMIT};
use crate::virtio::vsock::packet::{HEADER, Header, MAX_DATA, Op, Ports};

const HEADER_LENGTH: u32 = 44;
const PORTS: Ports = Ports { host: 9, guest: 10 };

fn alone() -> Guest {
    Guest::new(Config::new(CID))
}

/// What the device counts as malformed of what a test sends.
fn malformed(guest: &mut Guest) -> u64 {
    guest.kick(TRANSMIT);
    assert_ne!(guest.driver.used(TRANSMIT), [], "the driver gets its buffers back");
    guest.device.metrics().snapshot().malformed
}

#[test]
fn a_packet_of_no_connection_is_answered_by_a_reset() {
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        let mut guest = alone();
        guest.say(PORTS, op);
        let (header, _) = guest.receive_one();
        let expected = Header::to_guest(CID.into(), PORTS, Op::Reset);
        assert_eq!(header, expected, "{op:?}");
    }
}

#[test]
fn a_reset_of_no_connection_is_not_answered() {
    let mut guest = alone();
    guest.say(PORTS, Op::Reset);
    assert_eq!(guest.ops(), []);
}

#[test]
fn an_unknown_operation_is_answered_by_a_reset() {
    let mut guest = alone();
    let (header, data) = packet(PORTS, Op::Data);
    guest.send_all(&[(Header { op: 77, ..header }, data)]);
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn another_type_of_socket_is_answered_by_a_reset() {
    let (config, _service) = super::guest::serving(PORTS.host);
    let mut guest = Guest::new(config);
    let (header, data) = packet(PORTS, Op::Request);
    guest.send_all(&[(Header { kind: 2, ..header }, data)]);
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn packets_from_and_to_others_are_dropped() {
    for (src_cid, dst_cid) in [(4, 2), (CID.into(), 1), (CID.into(), 4), (1 << 32, 2)] {
        let mut guest = alone();
        let (header, data) = packet(PORTS, Op::Request);
        guest.send_all(&[(Header { src_cid, dst_cid, ..header }, data)]);
        assert_eq!(malformed(&mut guest), 1);
        assert_eq!(guest.ops(), []);
    }
}

#[test]
fn less_than_a_header_is_dropped() {
    let mut guest = alone();
    guest.transmit(&[0; HEADER - 1], HEADER);
    assert_eq!(malformed(&mut guest), 1);
    assert_eq!(guest.ops(), []);
}

#[test]
fn a_buffer_to_write_to_is_no_packet() {
    let mut guest = alone();
    guest.driver.offer(TRANSMIT, &[writable(DATA, 4096)]);
    assert_eq!(malformed(&mut guest), 1);
}

#[test]
fn a_packet_outside_of_memory_is_dropped() {
    let mut guest = alone();
    guest.driver.offer(TRANSMIT, &[readable(u64::MAX - 10, 4096)]);
    guest.driver.offer(TRANSMIT, &[readable(1 << 40, 4096)]);
    assert_eq!(malformed(&mut guest), 2);
}

#[test]
fn a_chain_that_leads_back_to_itself_is_dropped() {
    let mut guest = alone();
    guest.describe(TRANSMIT, 0, (DATA, 64), (VRING_DESC_F_NEXT, 1));
    guest.describe(TRANSMIT, 1, (DATA, 64), (VRING_DESC_F_NEXT, 0));
    guest.driver.offer_entry(TRANSMIT, 0);
    assert_eq!(malformed(&mut guest), 1);
}

#[test]
fn a_packet_in_too_many_pieces_is_dropped() {
    let mut guest = alone();
    let (header, data) = data_packet(PORTS, &[0; 100]);
    guest.transmit(&[&header.to_bytes()[..], &data].concat(), 1);
    assert_eq!(malformed(&mut guest), 1);
}

#[test]
fn an_indirect_table_of_nothing_is_dropped() {
    let mut guest = alone();
    guest.describe(TRANSMIT, 0, (DATA, 0), (VRING_DESC_F_INDIRECT, 0));
    guest.driver.offer_entry(TRANSMIT, 0);
    assert_eq!(malformed(&mut guest), 1);
}

#[test]
fn a_connection_whose_packet_lacks_its_data_is_reset() {
    for length in [101, MAX_DATA + 1, u32::MAX] {
        let (config, _host) = connected(5);
        let mut guest = Guest::new(config);
        let ports = guest.accept();
        let (header, data) = data_packet(ports, &[0; 100]);
        guest.send_all(&[(Header { len: length, ..header }, data)]);
        assert_eq!(guest.ops(), [Op::Reset], "{length}");
        assert_eq!(guest.device.connections(), 0);
    }
}

#[test]
fn a_second_request_or_response_resets_a_connection() {
    for op in [Op::Request, Op::Response] {
        let (config, _host) = connected(5);
        let mut guest = Guest::new(config);
        let ports = guest.accept();
        guest.say(ports, op);
        assert_eq!(guest.ops(), [Op::Reset], "{op:?}");
    }
}

#[test]
fn an_answer_to_what_was_not_asked_yet_is_no_answer() {
    let (config, _host) = connected(5);
    let mut guest = Guest::without_buffers(config);
    guest.say(Ports { host: 1 << 30, guest: 5 }, Op::Response);
    guest.offer_all();
    assert_eq!(guest.ops(), [Op::Reset]);
}

#[test]
fn receive_buffers_that_cannot_be_used_are_given_back_empty() {
    let (config, _host) = connected(5);
    let mut guest = Guest::without_buffers(config);
    guest.driver.offer(RECEIVE, &[readable(DATA, 4096)]);
    guest.driver.offer(RECEIVE, &[writable(DATA, HEADER_LENGTH)]);
    guest.driver.offer(RECEIVE, &[writable(DATA, 10)]);
    guest.driver.offer(RECEIVE, &[writable(1 << 40, 4096)]);
    guest.kick(RECEIVE);
    assert_eq!(guest.driver.used(RECEIVE), [(0, 0), (1, 0), (2, 0), (3, 0)]);
    guest.offer(1);
    guest.accept();
}

#[test]
fn a_ring_that_makes_no_sense_is_an_error() {
    let mut guest = alone();
    guest.driver.overstate(TRANSMIT, 300);
    let error = guest.driver.try_kick(&mut guest.device, TRANSMIT).unwrap_err();
    assert!(matches!(error, DeviceError::Queue { queue: TRANSMIT, .. }), "{error}");
}

#[test]
fn a_chain_outside_of_the_table_is_an_error() {
    let mut guest = alone();
    guest.driver.offer_entry(TRANSMIT, 256);
    let error = guest.driver.try_kick(&mut guest.device, TRANSMIT).unwrap_err();
    assert!(matches!(error, DeviceError::Queue { queue: TRANSMIT, .. }), "{error}");
}

#[test]
fn a_guest_that_takes_no_answers_is_not_heard_until_it_does() {
    let mut guest = Guest::without_buffers(Config::new(CID));
    let packets = vec![packet(PORTS, Op::Request); 200];
    guest.send_all(&packets);
    guest.send_all(&packets);
    assert_eq!(heard(&guest), 256, "the others are still in the ring");
    guest.offer_all();
    assert_eq!(guest.receive().len(), 256);
    while guest.wake() {}
    assert_eq!(heard(&guest), 400);
    assert_eq!(guest.receive().len(), 400 - 256);
}

fn heard(guest: &Guest) -> u64 {
    guest.device.metrics().snapshot().packets_from_guest
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(bytes in any::<[[u8; 22]; 2]>()) {
        let bytes: [u8; HEADER] = bytes.concat().try_into().unwrap();
        prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    }

    #[test]
    fn whatever_is_sent_the_driver_gets_its_buffers_back(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        op in 0u16..9,
        shapes in prop::collection::vec((0u32..100, 0u32..8, 0u16..16), 1..8),
    ) {
        let (config, _host) = connected(5);
        let mut guest = Guest::new(config);
        let ports = guest.accept();
        let (header, _) = packet(ports, Op::Data);
        let bytes = [&Header { op, ..header }.to_bytes()[..], &bytes].concat();
        guest.driver.write(DATA, &bytes);
        for (index, (length, flags, next)) in (0..).zip(&shapes) {
            let place = (DATA + u64::from(length % 50), *length);
            guest.describe(TRANSMIT, index, place, (*flags, *next));
            guest.driver.offer_entry(TRANSMIT, index);
        }
        guest.kick(TRANSMIT);
        // One of them answered the request for the connection.
        prop_assert_eq!(guest.driver.used(TRANSMIT).len(), 1 + shapes.len());
    }
}
