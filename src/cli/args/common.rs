//! Options that several commands share.

use std::path::PathBuf;

use clap::{ArgAction, ValueEnum, ValueHint};

use crate::image::Platform;
use crate::storage::store::{StoreKind, Unpacker};

/// Options for a platform. `--arch`, `--os` and `--variant` are podman's, `--override-arch` and so on are skopeo's.
#[derive(Debug, clap::Args)]
pub struct PlatformArgs {
    /// Platform of the images, as os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM", conflicts_with_all = ["arch", "os", "variant"])]
    pub platform: Option<Platform>,

    /// Processor of the images
    #[arg(long, alias = "override-arch", hide = true)]
    pub arch: Option<String>,

    /// Operating system of the images
    #[arg(long, alias = "override-os", hide = true)]
    pub os: Option<String>,

    /// Variant of the processor
    #[arg(long, alias = "override-variant", hide = true)]
    pub variant: Option<String>,
}

impl PlatformArgs {
    /// Returns the platform that was asked for, or this machine's.
    #[must_use]
    pub fn resolve(&self) -> Platform {
        if let Some(platform) = &self.platform {
            return platform.clone();
        }
        let host = Platform::host();
        // Another processor's variant says nothing about this one's.
        let variant =
            if self.arch.as_ref().is_none_or(|arch| *arch == host.architecture) { host.variant } else { String::new() };
        Platform {
            os: self.os.clone().unwrap_or(host.os),
            architecture: self.arch.clone().unwrap_or(host.architecture),
            variant: self.variant.clone().unwrap_or(variant),
        }
    }
}

/// Options for whatever talks to a registry.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Credentials for all registries (better: `podman login`, since other users can see a command line)
    #[arg(long, alias = "src-creds", value_name = "USER[:PASSWORD]")]
    pub creds: Option<String>,

    /// Use no credentials, and read no credentials file
    #[arg(long, alias = "src-no-creds", conflicts_with_all = ["creds", "authfile"])]
    pub no_creds: bool,

    /// Credentials file [default: $REGISTRY_AUTH_FILE, then those of podman, skopeo and docker]
    #[arg(long, alias = "src-authfile", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub authfile: Option<PathBuf>,

    /// Directory with *.crt, *.cert and *.key for all registries
    #[arg(long, alias = "src-cert-dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cert_dir: Option<PathBuf>,

    /// Require HTTPS with a valid certificate; `false` also allows plain HTTP
    #[arg(long, alias = "src-tls-verify", value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub tls_verify: bool,

    /// Give up on a manifest, a token or a connection after this many seconds, and on a layer that stands still for so long
    #[arg(long, value_name = "SECONDS", env = "PREPULL_TIMEOUT", default_value_t = crate::registry::TIMEOUT_SECONDS,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,

    /// Give up on a connection that is slower than this many bytes a second for 30 seconds; 0 accepts any
    #[arg(long, value_name = "BYTES", env = "PREPULL_MIN_RATE", default_value_t = crate::registry::MIN_RATE)]
    pub min_rate: u64,

    /// How often to try again after a failure without progress
    #[arg(long, value_name = "N", default_value_t = crate::registry::retry::RETRY_TIMES)]
    pub retry_times: u32,

    /// Refuse images, and archives, with more than SIZE when uncompressed (20G, 500M) [default: 64Gi; 4Gi for a layer that is
    /// compressed more than 100:1]
    ///
    /// Each layer is held to SIZE while it is unpacked, and the image as each of its layers ends. So layers that are unpacked at the
    /// same time (up to 6) may take SIZE each before the image is refused.
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::cache::parse_size, help_heading = "Limits")]
    pub max_size: Option<u64>,

    /// Wait this many seconds before each retry [default: 1, 2, 4, ...]
    #[arg(long, value_name = "SECONDS")]
    pub retry_delay: Option<u64>,
}

/// Options for the segment cache.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    /// Keep converted layers below DIR [default: $XDG_CACHE_HOME/prepull, else ~/.cache/prepull]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "no_cache")]
    pub cache_dir: Option<PathBuf>,

    /// Keep nothing
    #[arg(long)]
    pub no_cache: bool,

    /// Write large new layers twice, instead of giving the cache a hard link to the tar
    #[arg(long)]
    pub no_link: bool,
}

/// `--store`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum StoreArg {
    /// graphroot
    #[default]
    Primary,
    /// additionalimagestores
    Additional,
}

/// `--unpacker`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum UnpackerArg {
    /// busybox tar, also with -o: no attributes, owners given back by etc/init.d/25prepull.rc
    #[default]
    Busybox,
    /// GNU tar --xattrs --xattrs-include='*', bsdtar: everything is in the tar itself
    Gnu,
}

impl From<StoreArg> for StoreKind {
    fn from(arg: StoreArg) -> Self {
        match arg {
            StoreArg::Primary => Self::Primary,
            StoreArg::Additional => Self::Additional,
        }
    }
}

impl From<UnpackerArg> for Unpacker {
    fn from(arg: UnpackerArg) -> Self {
        match arg {
            UnpackerArg::Busybox => Self::Busybox,
            UnpackerArg::Gnu => Self::Gnu,
        }
    }
}
