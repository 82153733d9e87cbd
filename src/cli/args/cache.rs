//! Commands that look after the segment cache: `cache`, `cache prune`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};

/// `prepull cache`.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub struct CacheCommandArgs {
    /// The cache [default: $XDG_CACHE_HOME/prepull, else ~/.cache/prepull]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, global = true)]
    pub cache_dir: Option<PathBuf>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do with it; without: show it
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
}

/// What can be done with the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Remove what was not used for the longest time, and what killed processes left
    Prune(PruneArgs),
}

/// `prepull cache prune`.
#[derive(Debug, clap::Args)]
pub struct PruneArgs {
    /// Leave at most this many bytes (5G, 500M) [default: 10G, unless --older-than is given]
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::cache::parse_size)]
    pub max_size: Option<u64>,

    /// Remove what was not used for this time (30d, 12h)
    #[arg(long, value_name = "DURATION", value_parser = crate::cli::cache::parse_duration)]
    pub older_than: Option<Duration>,

    /// Remove everything
    #[arg(long, conflicts_with_all = ["max_size", "older_than"])]
    pub all: bool,
}
