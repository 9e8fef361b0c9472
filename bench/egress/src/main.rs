//! The gateway's figures alone, without what the other benchmarks take to build.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(status) = bench_egress::child(&arguments) {
        return status;
    }
    match bench_egress::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-egress: {error}");
            ExitCode::FAILURE
        }
    }
}
