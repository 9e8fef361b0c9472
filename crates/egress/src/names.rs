//! Names and the addresses that stand for them inside a sandbox. No such address is on any network
//! (RFC 2544); a connection to one says which name is meant.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use canonical::Name;

/// The first address that stands for a name; those below are the sandbox's own.
const FIRST: u32 = u32::from_be_bytes([198, 18, 1, 0]);
/// Most names at a time. Further ones take the place of those that were given first.
const MOST: u32 = 1 << 15;

#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    addresses: HashMap<Name, u32>,
    names: HashMap<u32, Name>,
    next: u32,
}

impl Names {
    /// The address for `name`, always the same one while it has it.
    pub(crate) fn address(&self, name: &Name) -> Ipv4Addr {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match table.addresses.get(name) {
            Some(&place) => place,
            None => {
                let place = table.next;
                table.next = (place + 1) % MOST;
                if let Some(former) = table.names.insert(place, name.clone()) {
                    table.addresses.remove(&former);
                }
                table.addresses.insert(name.clone(), place);
                place
            }
        };
        Ipv4Addr::from(FIRST + place)
    }

    /// The name that `address` stands for.
    pub(crate) fn name(&self, address: Ipv4Addr) -> Option<Name> {
        let place = u32::from(address).checked_sub(FIRST)?;
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.names.get(&place).cloned()
    }
}

/// Whether `address` is of the range whose addresses stand for names (RFC 2544).
pub(crate) fn is_synthetic(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 198 && (second == 18 || second == 19)
}

#[cfg(test)]
mod tests {
    use canonical::Host;

    use super::*;

    fn name(text: &str) -> Name {
        Host::parse(text).unwrap().name().unwrap().clone()
    }

    #[test]
    fn a_name_keeps_its_address_and_an_address_tells_its_name() {
        let names = Names::default();
        let (a, b) = (names.address(&name("a.example")), names.address(&name("b.example")));
        assert_ne!(a, b);
        assert_eq!(names.address(&name("a.example")), a);
        assert_eq!(names.name(a), Some(name("a.example")));
        assert_eq!(names.name(b), Some(name("b.example")));
        assert!(is_synthetic(a) && is_synthetic(b));
        assert_eq!(names.name(Ipv4Addr::new(198, 18, 0, 2)), None);
        assert_eq!(names.name(Ipv4Addr::new(10, 0, 0, 1)), None);
    }

    #[test]
    fn a_million_names_take_no_more_room_than_there_is() {
        let names = Names::default();
        let first = names.address(&name("n0.example"));
        for number in 1..=MOST {
            let address = names.address(&name(&format!("n{number}.example")));
            assert!(is_synthetic(address));
        }
        assert_eq!(names.name(first), Some(name(&format!("n{MOST}.example"))));
        assert_eq!(names.0.lock().unwrap().addresses.len(), MOST as usize);
    }
}
