//! `prepull completions` and `prepull man`: written from the very definition of the command line.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Failure;
use super::args::Args;
use super::output::{self, Printer};
use crate::atomic::{Unnamed, remove_leftovers_of};

/// Runs `completions`.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "prepull", &mut text);
    Ok(output::data(&String::from_utf8(text)?)?)
}

/// Runs `man`.
pub fn man(directory: &Path, printer: &Printer) -> Result<(), Failure> {
    fs_err::create_dir_all(directory)?;
    let mut command = Args::command();
    command.build();
    page(&command, directory, printer)
}

fn page(command: &clap::Command, directory: &Path, printer: &Printer) -> Result<(), Failure> {
    let man = clap_mangen::Man::new(command.clone());
    let path = directory.join(man.get_filename());
    let mut text = Vec::new();
    man.render(&mut text)?;
    remove_leftovers_of(&path);
    let file = Unnamed::new_in(directory, 0o666)?;
    file.file().write_all(&text).with_context(|| format!("writing {}", path.display()))?;
    file.publish_over(&path)?;
    printer.say(&format!("wrote {}", path.display()));
    command.get_subcommands().try_for_each(|command| page(command, directory, printer))
}
