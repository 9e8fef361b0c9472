//! A server whose sandboxes are the mock engine's: for tests of clients, and of the API itself.
//!
//! `mock DIRECTORY` keeps everything below the directory, takes the token in `SANDFORGE_TOKEN`,
//! prints its URL when it listens, and ends with its standard input. The certificate to trust is
//! `DIRECTORY/ca.pem`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use api::Secret;
use fleet::{Manager, Mode};
use server::Config;
use supervisor::Supervisor;
use supervisor::mock::{Mock, Reply};
use tokio::io::AsyncReadExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from).ok_or("mock DIRECTORY")?;
    let mock = Mock::default()
        .on(["true"], Reply::exit(0))
        .on(["hello"], Reply::exit(0).stdout("hello\n"))
        .on(["cat"], Reply::echo());
    let images = image::Store::open(&directory.join("images"))?;
    let supervisor = Supervisor::with_engines(images, vec![Box::new(mock)])
        .with_runtime_directory(directory.join("kept"));
    let mut fleet = fleet::Config::new(Mode::Daemon, directory.join("data"));
    let token = std::env::var("SANDFORGE_TOKEN")?;
    fleet.administrator_token = Some(Secret::new(token.into_bytes())?);
    fleet.secrets.place = Some(secrets::Place::KeyFile);
    let manager = Manager::open(fleet, supervisor).await?;
    let mut config = Config::new(directory.join("data"));
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    // Whoever tests every route without a token is not to be told that it does so too often.
    config.limits.failures_per_second = u32::MAX;
    config.unix_socket = Some(directory.join("run/api.sock"));
    let running = server::serve(manager.clone(), config).await?;
    std::fs::write(directory.join("ca.pem"), running.authority()?)?;
    println!("https://localhost:{}", running.addresses()[0].port());
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    running.shutdown(Duration::from_secs(10)).await;
    manager.shutdown(Duration::from_secs(10)).await;
    Ok(())
}
