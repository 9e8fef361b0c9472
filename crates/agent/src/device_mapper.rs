//! Parts of a disk as devices of their own, by the kernel's device mapper
//! (Documentation/admin-guide/device-mapper, `linux/dm-ioctl.h`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use wire::disk::{Layer, SECTOR, VERITY_BLOCK, Verity};

/// Bytes of `struct dm_ioctl`, and where its fields are.
const HEADER: usize = 312;
const VERSION: usize = 0;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGETS: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;
const NAME: usize = 48;
const NAME_BYTES: usize = 128;
/// Bytes of `struct dm_target_spec`.
const TARGET: usize = 40;

const READ_ONLY: u32 = 1;

const CREATE: u64 = request(3);
/// With no flag that says otherwise, it resumes, and with that takes the table that was loaded.
const SUSPEND: u64 = request(6);
const LOAD: u64 = request(9);

/// `_IOWR(DM_IOCTL, number, struct dm_ioctl)`.
const fn request(number: u64) -> u64 {
    3 << 30 | (HEADER as u64) << 16 | 0xfd << 8 | number
}

/// What makes devices.
#[derive(Debug)]
pub(crate) struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    pub(crate) fn open() -> io::Result<Self> {
        let control = File::options().read(true).write(true).open("/dev/mapper/control")?;
        Ok(Self { control })
    }

    /// The device that holds a layer of `disk`, checked where the layer can be.
    pub(crate) fn layer(&self, index: usize, disk: &str, layer: &Layer) -> io::Result<String> {
        let Layer { start, sectors, verity, .. } = layer;
        let part =
            self.device(&format!("layer{index}"), *sectors, "linear", &format!("{disk} {start}"))?;
        let Some(verity) = verity else { return Ok(part) };
        let blocks = verity.data_blocks.checked_mul(VERITY_BLOCK / SECTOR);
        let checked = blocks.filter(|blocks| blocks <= sectors);
        let checked =
            checked.ok_or_else(|| io::Error::other("its hash tree is of a larger layer"))?;
        self.device(&format!("checked{index}"), checked, "verity", &parameters(&part, verity))
    }

    /// Makes a device that can only be read.
    fn device(&self, name: &str, sectors: u64, kind: &str, parameters: &str) -> io::Result<String> {
        let mut message = Message::new(name);
        self.ask(CREATE, &mut message)?;
        let device = format!("/dev/dm-{}", message.minor());
        let mut message = Message::new(name);
        message.put(FLAGS, &READ_ONLY.to_ne_bytes());
        message.add_target(sectors, kind, parameters);
        self.ask(LOAD, &mut message)?;
        self.ask(SUSPEND, &mut Message::new(name))?;
        Ok(device)
    }

    fn ask(&self, request: u64, message: &mut Message) -> io::Result<()> {
        let length = u32::try_from(message.0.len()).expect("a page");
        message.put(DATA_SIZE, &length.to_ne_bytes());
        // SAFETY: the request reads and writes as many bytes as the message says in its third
        // field, which is as many as there are; nothing else refers to them meanwhile.
        let result =
            unsafe { libc::ioctl(self.control.as_raw_fd(), request as _, message.0.as_mut_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// What the target `verity` is told. What is not what it was is not read as something else, and
/// not as an error that a task might pass over: the machine stops.
fn parameters(part: &str, verity: &Verity) -> String {
    let Verity { data_blocks, tree, root, salt } = verity;
    let salt = if salt.is_empty() { "-" } else { salt };
    format!(
        "1 {part} {part} {VERITY_BLOCK} {VERITY_BLOCK} {data_blocks} {tree} sha256 {root} {salt} \
         1 panic_on_corruption"
    )
}

/// A `struct dm_ioctl`, and what follows it.
struct Message(Vec<u8>);

impl Message {
    fn new(name: &str) -> Self {
        let mut message = Self(vec![0; HEADER]);
        message.put(VERSION, &4_u32.to_ne_bytes());
        let start = u32::try_from(HEADER).expect("it is small");
        message.put(DATA_START, &start.to_ne_bytes());
        let name = &name.as_bytes()[..name.len().min(NAME_BYTES - 1)];
        message.put(NAME, name);
        message
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The only target of a table: all of the device.
    fn add_target(&mut self, sectors: u64, kind: &str, parameters: &str) {
        self.put(TARGETS, &1_u32.to_ne_bytes());
        let mut target = vec![0; TARGET];
        target[8..16].copy_from_slice(&sectors.to_ne_bytes());
        target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
        self.0.extend(target);
        self.0.extend(parameters.as_bytes());
        // It ends with a zero, and what would follow is aligned.
        self.0.resize((self.0.len() + 1).next_multiple_of(8), 0);
    }

    /// Of the device that was made, as `huge_encode_dev` has it.
    fn minor(&self) -> u64 {
        let mut device = [0; 8];
        device.copy_from_slice(&self.0[DEVICE..DEVICE + 8]);
        let device = u64::from_ne_bytes(device);
        device & 0xff | device >> 12 & 0xfff00
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_one_target_with_its_parameters() {
        let mut message = Message::new("layer0");
        message.add_target(16, "linear", "/dev/vda 128");
        assert_eq!(message.0.len(), HEADER + TARGET + 16);
        assert_eq!(&message.0[HEADER + 8..HEADER + 16], &16_u64.to_ne_bytes());
        assert!(message.0[HEADER + TARGET..].starts_with(b"/dev/vda 128\0"));
    }

    #[test]
    fn a_checked_layer_stops_the_machine_where_it_is_not_what_it_was() {
        let verity = Verity { data_blocks: 3, tree: 4, root: "ab".into(), salt: String::new() };
        let expected = "1 /dev/dm-0 /dev/dm-0 4096 4096 3 4 sha256 ab - 1 panic_on_corruption";
        assert_eq!(parameters("/dev/dm-0", &verity), expected);
    }

    #[test]
    fn a_device_s_number_is_read_as_the_kernel_writes_it() {
        let mut message = Message::new("x");
        message.put(DEVICE, &(0x0010_0000_u64 | 254 << 8 | 5).to_ne_bytes());
        assert_eq!(message.minor(), 0x105);
    }
}
