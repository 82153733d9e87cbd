//! Archives of images: what docker saved, an OCI layout in a tar, what the Docker daemon answers; also compressed.
#![no_main]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use prepull::digest::{Digest, VerifyReader};
use prepull::image::{Image, Platform};
use prepull::reference::{ArchiveSelect, DaemonImage, Location, Reference};
use prepull::source::{self, Options};
use prepull_fuzz::{choice, fix_checksums, scratch};

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let (head, tar) = match choice & 3 {
        // The daemon's answer has a head before the archive.
        3 => rest.split_at(rest.windows(4).position(|end| end == b"\r\n\r\n").map_or(rest.len(), |at| at + 4)),
        _ => rest.split_at(0),
    };
    let mut tar = tar.to_vec();
    if choice & 0x80 == 0 {
        fix_checksums(&mut tar);
    }
    let bytes = match choice >> 2 & 3 {
        2 => prepull_fuzz::gzip(&tar, &[tar.len() / 2]),
        3 => prepull_fuzz::zstd(&tar, &[]),
        _ => tar,
    };
    let path = scratch().join("archive");
    let select = || match choice >> 4 & 3 {
        0 | 1 => ArchiveSelect::Only,
        2 => ArchiveSelect::Index(1),
        _ => ArchiveSelect::Tag(Reference::parse("localhost/a:1").expect("a name")),
    };
    let location = match choice & 3 {
        0 | 1 => Location::DockerArchive { path: path.clone(), select: select() },
        2 => {
            let reference =
                ["@0", "@1", "localhost/a:1"].get(usize::from(choice >> 4 & 3)).map(|text| (*text).to_owned());
            Location::OciArchive { path: path.clone(), reference }
        }
        _ if choice & 0x10 == 0 => Location::DockerDaemon(DaemonImage::Id(Digest::of(b""))),
        _ => Location::DockerDaemon(DaemonImage::Name(Reference::parse("localhost/a:1").expect("a name"))),
    };
    let mut options = Options { tmpdir: Some(scratch().to_owned()), ..Options::default() };
    if choice & 3 == 3 {
        options.docker_host = Some(format!("unix://{}", answer(&[head, &bytes].concat()).display()));
    } else {
        fs_err::write(&path, &bytes).expect("a scratch file");
    }
    let Ok(source) = source::open(&location, &options) else { return };
    let _ = source.names();
    let platform: Platform = "linux/amd64".parse().expect("a platform");
    let Ok(image) = Image::open(&*source, None, &platform) else { return };
    assert_eq!(image.id(), Digest::of(image.config()));
    for layer in image.layers() {
        let Ok(blob) = source.blob(&layer.descriptor) else { continue };
        let mut verified = VerifyReader::new(blob, layer.descriptor.digest, layer.descriptor.size);
        let mut content = Vec::new();
        if verified.read_to_end(&mut content).is_ok() {
            assert_eq!(Digest::of(&content), layer.descriptor.digest);
            assert_eq!(content.len() as u64, layer.descriptor.size);
        }
    }
});

/// Has the next request to a daemon answered with `bytes`; gives where it listens.
fn answer(bytes: &[u8]) -> PathBuf {
    static NEXT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    static DAEMON: OnceLock<PathBuf> = OnceLock::new();
    *NEXT.lock().expect("whole") = bytes.to_vec();
    let start = || {
        let path = scratch().join("docker.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                let mut request = [0; 4096];
                let _ = connection.read(&mut request);
                let answer = NEXT.lock().expect("whole").clone();
                // Who has read enough hangs up.
                let _ = connection.write_all(&answer);
            }
        });
        path
    };
    DAEMON.get_or_init(start).clone()
}
