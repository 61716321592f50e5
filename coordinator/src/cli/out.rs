//! stdout: data and nothing else.

use std::io::{self, Write};

use crate::failure::Failure;

/// Writes to stdout. A reader that went away has had enough, which is no failure.
///
/// # Errors
/// Resources: for instance, stdout is a file on a full disk.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::resources(format!(
            "standard output cannot be written: {error}"
        ))),
    }
}

/// Writes one JSON object and a line feed.
///
/// # Errors
/// As [`text`].
pub fn object(object: &serde_json::Value) -> Result<(), Failure> {
    text(&format!("{object:#}\n"))
}
