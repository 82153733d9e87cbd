//! `prepull completions` and `prepull man`: written from the definition of the command line.

mod complete;
mod man;

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap_complete::Shell;

use super::Failure;
use super::args::command;
use super::output::{self, Printer, printable};
use crate::atomic::{Unnamed, remove_leftovers_of};

/// Runs `completions`.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "prepull", &mut text);
    Ok(output::bytes(complete::with_names(shell, &String::from_utf8(text)?).as_bytes())?)
}

/// Runs `man`.
pub fn man(directory: &Path, printer: &Printer) -> Result<(), Failure> {
    fs_err::create_dir_all(directory)?;
    for (name, text) in man::pages()? {
        let path = directory.join(name);
        remove_leftovers_of(&path);
        let file = Unnamed::new_in(directory, 0o666)?;
        file.file().write_all(&text).with_context(|| format!("writing {}", path.display()))?;
        file.publish_over(&path)?;
        printer.say(&format!("wrote {}", printable(&path.display().to_string())));
    }
    Ok(())
}
