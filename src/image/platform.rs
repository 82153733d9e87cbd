//! Platforms, and which manifest of an index is taken: the rules of containers/image `internal/pkg/platform`.

use std::fmt;
use std::str::FromStr;

/// An operating system and a processor, in Go's words: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `GOOS`.
    pub os: String,
    /// `GOARCH`.
    pub architecture: String,
    /// The processor's variant (`v7`), empty where there is none.
    pub variant: String,
}

/// Why a string is not a [`Platform`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a platform: expected OS/ARCH or OS/ARCH/VARIANT, for instance linux/arm64")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform of the machine that this runs on, with Go's names. The system is always `linux`.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            "mips" if cfg!(target_endian = "little") => "mipsle",
            other => other,
        };
        let variant = match architecture {
            "arm64" => "v8",
            "arm" => fs_err::read_to_string("/proc/cpuinfo").ok().and_then(|text| arm_variant(&text)).unwrap_or("v7"),
            _ => "",
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// The variants that will do, best first (`WantedPlatforms`).
    fn wanted_variants(&self) -> Vec<&str> {
        let known: &[&str] = match self.architecture.as_str() {
            "arm" => &["v8", "v7", "v6", "v5"],
            "arm64" => &["v8"],
            _ => &[],
        };
        let mut wanted = Vec::new();
        if self.variant.is_empty() {
            wanted.push("");
            wanted.extend(known);
        } else {
            match known.iter().position(|variant| *variant == self.variant) {
                Some(at) => wanted.extend(&known[at..]),
                None => wanted.push(self.variant.as_str()),
            }
            wanted.push("");
        }
        wanted
    }

    /// How well an image for `image` serves who asked for `self`: 0 is best, `None` not at all.
    #[must_use]
    pub fn rank(&self, image: &Self) -> Option<usize> {
        if image.os != self.os || image.architecture != self.architecture {
            return None;
        }
        self.wanted_variants().iter().position(|variant| *variant == image.variant)
    }
}

/// The variant that Linux reports in `/proc/cpuinfo` (`getCPUVariantArm`).
fn arm_variant(cpuinfo: &str) -> Option<&'static str> {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
        })
    };
    match field("cpu architecture")?.as_str() {
        "8" | "aarch64" => Some("v8"),
        // A Raspberry Pi Zero says 7 but is a v6.
        "7" if field("model name").is_some_and(|name| name.starts_with("armv6-compatible")) => Some("v6"),
        "7" | "7m" | "?(12)" | "?(13)" | "?(14)" | "?(15)" | "?(16)" | "?(17)" => Some("v7"),
        "6" | "6tej" => Some("v6"),
        "5" | "5t" | "5te" | "5tej" => Some("v5"),
        "4" | "4t" => Some("v4"),
        "3" => Some("v3"),
        _ => None,
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(word) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: variant.first().copied().unwrap_or_default().to_owned(),
            }),
            _ => Err(ParsePlatformError(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_are_parsed_and_written() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/arm/", "li nux/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variants_are_ranked_as_containers_image_does() {
        let table = [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v2", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64/v3", "linux/amd64", Some(1)),
            ("linux/arm64", "linux/arm64", Some(0)),
            ("linux/arm64", "linux/arm64/v8", Some(1)),
            ("linux/arm64/v8", "linux/arm64/v8", Some(0)),
            ("linux/arm64/v8", "linux/arm64", Some(1)),
            ("linux/arm/v7", "linux/arm/v8", None),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v7", "linux/arm", Some(3)),
            ("linux/arm/v4", "linux/arm", Some(1)),
            ("linux/arm", "linux/arm/v7", Some(2)),
        ];
        for (wanted, image, rank) in table {
            assert_eq!(platform(wanted).rank(&platform(image)), rank, "{wanted} {image}");
        }
    }

    #[test]
    fn the_arm_variant_is_read_from_cpuinfo() {
        assert_eq!(arm_variant("processor\t: 0\nCPU architecture: 7\n"), Some("v7"));
        assert_eq!(arm_variant("model name\t: ARMv6-compatible processor rev 7\nCPU architecture: 7\n"), Some("v6"));
        assert_eq!(arm_variant("CPU architecture: 8\n"), Some("v8"));
        assert_eq!(arm_variant("flags: fpu\n"), None);
        assert_eq!(Platform::host().os, "linux");
    }
}
