//! Stores that skopeo makes of the images at the edge. Several tests compare with them, so each is made once in a run of
//! `tests/run`, which names a directory for them in `PREPULL_SHARED`.

use std::path::{Path, PathBuf};

use prepull::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::corpus::Case;
use crate::stores::{Clock, skopeo_into};

/// The store that skopeo made of an image, or its refusal.
pub struct Theirs {
    /// The store. It may belong to other tests, too: it is only to be read.
    pub root: PathBuf,
    /// Whether skopeo takes the image.
    pub is_accepted: bool,
    /// The text that skopeo printed to standard error.
    pub said: String,
    /// When the store was made.
    pub clock: Clock,
}

/// How it ended, as the process that has run skopeo leaves it to the others.
#[derive(Serialize, Deserialize)]
struct Ended {
    is_accepted: bool,
    said: String,
    begun: i64,
}

/// Has skopeo make a store of the image `item`, which is `case`; in the directory `at` unless the run shares them.
pub fn theirs(case: &Case, item: &str, at: &Path) -> Theirs {
    let Some(shared) = std::env::var_os("PREPULL_SHARED").map(PathBuf::from) else {
        return make(case, item, &at.join("skopeo")).1;
    };
    // Two collections have images of one name.
    let layers: Vec<u8> =
        case.layers.iter().flat_map(|layer| Digest::of(&layer.blob).to_string().into_bytes()).collect();
    let place = shared.join(format!("{}-{}", case.name, &Digest::of(&layers).hex()[..12]));
    fs_err::create_dir_all(&place).unwrap();
    let lock = fs_err::File::create(place.join("lock")).unwrap();
    lock.file().lock().unwrap();
    let (root, ended) = (place.join("skopeo"), place.join("ended"));
    if let Ok(bytes) = fs_err::read(&ended) {
        let Ended { is_accepted, said, begun } = serde_json::from_slice(&bytes).unwrap();
        return Theirs { root, is_accepted, said, clock: Clock::since(begun) };
    }
    // Another process may have been killed.
    let _ = fs_err::remove_dir_all(&root);
    let (how, theirs) = make(case, item, &root);
    fs_err::write(ended, serde_json::to_vec(&how).unwrap()).unwrap();
    theirs
}

fn make(case: &Case, item: &str, root: &Path) -> (Ended, Theirs) {
    let begun = Clock::now();
    let output = skopeo_into(root, item, &case.image());
    let (is_accepted, said) = (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned());
    let theirs = Theirs { root: root.to_owned(), is_accepted, said: said.clone(), clock: Clock::since(begun) };
    (Ended { is_accepted, said, begun }, theirs)
}
