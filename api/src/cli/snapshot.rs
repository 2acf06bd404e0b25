//! `eswitchctl snapshot`: everything that clients have PUT, into a file and back.
//!
//! In: a daemon, or a file that it once wrote. Out: that file, whole or not at all, or a daemon that
//! has in force what the file says. The daemon checks what the file says: it says which field is
//! wrong.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{CommandError, Exit};
use crate::client::Client;

/// The file name that stands for standard input or output.
const STANDARD: &str = "-";

/// Writes a snapshot to `file`. One that is there is replaced only by a whole one.
pub(super) async fn save(
    client: &Client,
    file: &Path,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let snapshot = client.snapshot().await?;
    let mut text = serde_json::to_string_pretty(&snapshot)
        .map_err(|error| CommandError::Document(error.to_string()))?;
    text.push('\n');
    if file == Path::new(STANDARD) {
        out.write_all(text.as_bytes())?;
        return Ok(Exit::Done);
    }
    write_whole(file, &text)
        .map_err(|source| CommandError::Save { path: file.to_owned(), source })?;
    let (networks, ports, guests) =
        (snapshot.networks.len(), snapshot.ports.len(), snapshot.guests.len());
    writeln!(
        out,
        "saved revision {}: {networks} networks, {ports} ports, {guests} guests",
        snapshot.revision
    )?;
    Ok(Exit::Done)
}

/// Puts what `file` says in the place of everything that clients have PUT.
pub(super) async fn restore(
    client: &Client,
    file: &Path,
    input: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let mut text = Vec::new();
    let read = match file == Path::new(STANDARD) {
        true => input.read_to_end(&mut text),
        false => File::open(file).and_then(|mut file| file.read_to_end(&mut text)),
    };
    read.map_err(|source| CommandError::File { path: file.to_owned(), source })?;
    let put = client.restore(text).await?;
    let now = put.resource;
    writeln!(
        out,
        "{}, revision {}: {} networks, {} ports, {} guests",
        put.outcome.as_str(),
        now.revision,
        now.networks,
        now.ports,
        now.guests
    )?;
    Ok(Exit::Done)
}

/// Writes beside `file`, and puts that in its place once it is on the disk.
pub(super) fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    let written = (|| {
        let mut new = File::create(&beside)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, file)
    })();
    if written.is_err() {
        // What went wrong is told; what it left is of no use.
        let _ = fs::remove_file(&beside);
    }
    written
}
