//! Builds the monitor, so that the one `sandforge` binary carries it.

use std::error::Error;

use embed::Program;

fn main() -> Result<(), Box<dyn Error>> {
    // Position-independent: a guest that finds a flaw in its monitor does not know where it lies.
    let flags = &["-Crelocation-model=pie"];
    Program { name: "monitor", variable: "SANDFORGE_MONITOR_BIN", flags }.embed()
}
