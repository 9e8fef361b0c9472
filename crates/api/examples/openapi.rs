//! Prints the OpenAPI document.
fn main() -> Result<(), serde_json::Error> {
    println!("{}", api::openapi().to_pretty_json()?);
    Ok(())
}
