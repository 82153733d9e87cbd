//! Writes a segment, on a thread of its own: checksums, and the bytes to where they belong.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use super::file::{CHUNK, Facts, Trailer, seed, set_times, sum};
use super::place::{Place, Slot};
use crate::digest::{Digest, Hasher};
use crate::threads;
use crate::wire;

/// Chunks under way between the threads.
const CHUNKS: usize = 4;

/// Why a segment cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Its own file cannot.
    #[error("{0}")]
    Own(#[source] io::Error),
    /// The tar that has its body cannot.
    #[error("{0}")]
    Tar(#[source] io::Error),
}

enum Message {
    /// The body begins so many bytes after its place.
    Lead(u64),
    /// The next bytes of the data, and where in the data time-stamped headers stand in them.
    Chunk(Vec<u8>, Vec<u64>),
    /// The body has this length.
    EndOfBody(u64),
}

/// Takes the data of a segment: the body, then the rest. An error of the other thread comes out where it is met.
#[derive(Debug)]
pub struct Writer {
    buffer: Vec<u8>,
    /// Headers in the buffer, or about to come into it, that have the time of the store.
    stamped: Vec<u64>,
    position: u64,
    chunks: Option<SyncSender<Message>>,
    empty: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Result<Written, WriteError>>>,
}

impl Writer {
    /// Writes to `own`, which must be empty, for `key`; the body to the place that `slot` has in time.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn new(own: File, key: &Digest, slot: Slot) -> io::Result<Self> {
        let (chunks, messages) = sync_channel(CHUNKS);
        let (empty_sender, empty) = channel();
        for _ in 0..CHUNKS {
            let _ = empty_sender.send(Vec::new());
        }
        let written = Written {
            own,
            own_length: 0,
            lead: 0,
            place: None,
            hasher: None,
            key: *key,
            sums: Vec::new(),
            stamped: Vec::new(),
            body: None,
            length: 0,
        };
        let thread = threads::spawn(move || written.run(&slot, &messages, &empty_sender))?;
        let (buffer, stamped) = (Vec::with_capacity(CHUNK), Vec::new());
        Ok(Self { buffer, stamped, position: 0, chunks: Some(chunks), empty, thread: Some(thread) })
    }

    /// Bytes written so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The body begins `lead` bytes after its place, as far as is known: what stands there is not written here. Once the
    /// body has been put there it stays.
    ///
    /// # Errors
    /// When what was written before could not be.
    pub fn lead(&mut self, lead: u64) -> io::Result<()> {
        self.send(Message::Lead(lead))
    }

    /// Writes the headers of an entry; `is_stamped`: the last block has the time of the store.
    ///
    /// # Errors
    /// When what was written before could not be.
    pub fn header(&mut self, headers: &[u8], is_stamped: bool) -> io::Result<()> {
        if is_stamped {
            self.stamped.push(self.position + headers.len() as u64 - wire::BLOCK);
        }
        self.write_all(headers)
    }

    /// What follows is not the body.
    ///
    /// # Errors
    /// When what was written before could not be.
    pub fn end_body(&mut self) -> io::Result<()> {
        self.send(Message::EndOfBody(self.position))
    }

    /// Has everything written.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn finish(mut self) -> io::Result<Written> {
        if !self.buffer.is_empty() {
            self.flush_chunk()?;
        }
        self.chunks = None;
        self.join()
    }

    fn flush_chunk(&mut self) -> io::Result<()> {
        let next = self.empty.recv().unwrap_or_default();
        let chunk = std::mem::replace(&mut self.buffer, next);
        self.buffer.clear();
        self.buffer.reserve_exact(CHUNK);
        let after = self.stamped.partition_point(|&at| at < self.position);
        let rest = self.stamped.split_off(after);
        let stamped = std::mem::replace(&mut self.stamped, rest);
        self.send(Message::Chunk(chunk, stamped))
    }

    fn send(&mut self, message: Message) -> io::Result<()> {
        match self.chunks.as_ref().map(|chunks| chunks.send(message)) {
            Some(Ok(())) => Ok(()),
            _ => self.join().map(drop),
        }
    }

    /// How the other thread ended.
    fn join(&mut self) -> io::Result<Written> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(written)) => written.map_err(io::Error::other),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Err(io::Error::other("writing has failed before")),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..part]);
        self.position += part as u64;
        if self.buffer.len() == CHUNK {
            self.flush_chunk()?;
        }
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The data of a segment, written.
#[derive(Debug)]
pub struct Written {
    own: File,
    own_length: u64,
    lead: u64,
    place: Option<Place>,
    /// Hashes the body once it has a place in a tar: see [`Facts::body`].
    hasher: Option<Hasher>,
    key: Digest,
    sums: Vec<u8>,
    stamped: Vec<u64>,
    body: Option<u64>,
    length: u64,
}

impl Written {
    fn run(mut self, slot: &Slot, messages: &Receiver<Message>, empty: &Sender<Vec<u8>>) -> Result<Self, WriteError> {
        for message in messages {
            match message {
                Message::Lead(lead) => self.lead = lead,
                Message::Chunk(mut chunk, stamped) => {
                    if self.body.is_none() {
                        self.take_place(slot)?;
                    }
                    self.chunk(&mut chunk, &stamped)?;
                    // The other thread may need no more.
                    let _ = empty.send(chunk);
                }
                Message::EndOfBody(length) => {
                    // An empty body needs no tar, which may be shorter than its place.
                    if length > 0 {
                        self.take_place(slot)?;
                    }
                    self.body = Some(length);
                }
            }
        }
        Ok(self)
    }

    fn chunk(&mut self, chunk: &mut [u8], stamped: &[u64]) -> Result<(), WriteError> {
        let number = self.length / CHUNK as u64;
        self.sums.extend_from_slice(&sum(chunk, seed(&self.key), number));
        self.stamped.extend_from_slice(stamped);
        let in_body = self.body.unwrap_or(u64::MAX).saturating_sub(self.length).min(chunk.len() as u64) as usize;
        if let Some(place) = &self.place {
            let (body, rest) = chunk.split_at_mut(in_body);
            if let Some(hasher) = &mut self.hasher {
                hasher.update(body);
            }
            set_times(body, self.length, stamped, place.stamp);
            place.tar.write_all_at(body, place.offset + self.length).map_err(WriteError::Tar)?;
            self.own.write_all_at(rest, self.own_length).map_err(WriteError::Own)?;
            self.own_length += rest.len() as u64;
        } else {
            self.own.write_all_at(chunk, self.own_length).map_err(WriteError::Own)?;
            self.own_length += chunk.len() as u64;
        }
        self.length += chunk.len() as u64;
        Ok(())
    }

    /// Goes on in the tar, once there is a place, and takes along what has been written.
    fn take_place(&mut self, slot: &Slot) -> Result<(), WriteError> {
        if self.place.is_some() {
            return Ok(());
        }
        let Some(place) = slot.place(self.length) else { return Ok(()) };
        let place = Place { offset: place.offset + self.lead, ..place };
        let mut buffer = vec![0; CHUNK.min(self.length as usize)];
        let mut hasher = Hasher::new();
        let mut at = 0;
        while at < self.length {
            let part = CHUNK.min((self.length - at) as usize);
            let part = &mut buffer[..part];
            self.own.read_exact_at(part, at).map_err(WriteError::Own)?;
            hasher.update(part);
            set_times(part, at, &self.stamped, place.stamp);
            place.tar.write_all_at(part, place.offset + at).map_err(WriteError::Tar)?;
            at += part.len() as u64;
        }
        self.own.set_len(0).map_err(WriteError::Own)?;
        self.own_length = 0;
        self.hasher = Some(hasher);
        self.place = Some(place);
        Ok(())
    }

    /// Whether the body is in a tar.
    #[must_use]
    pub fn is_in_tar(&self) -> bool {
        self.place.is_some()
    }

    /// Header blocks in the body that have the time of the store, ascending.
    #[must_use]
    pub fn stamped(&self) -> &[u64] {
        &self.stamped
    }

    /// The content of files in the body, from `offset`.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn read_back(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.place {
            Some(place) => place.tar.read_exact_at(buffer, place.offset + offset),
            None => self.own.read_exact_at(buffer, offset),
        }
    }

    /// Ends the segment: of the data, `split` bytes after the body are the tar-split and the rest is the index.
    ///
    /// # Errors
    /// When the end cannot be written.
    pub fn seal(self, split: u64, facts: &Facts) -> io::Result<()> {
        let body = self.body.unwrap_or(self.length);
        let (tar, offset) = self.place.as_ref().map_or((0, 0), |place| (place.number, place.offset));
        let trailer = Trailer { body, split, index: self.length - body - split, tar, offset };
        let facts = Facts { body: self.hasher.map(Hasher::finish), ..facts.clone() };
        let end = trailer.seal(&self.key, self.sums, &facts)?;
        self.own.write_all_at(&end, self.own_length)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entry::{Entry, Kind, Meta};
    use crate::segment::file::{BodyTar, Segment, Trust};

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn what_was_written_can_be_read_back() {
        let mut writer = Writer::new(tempfile::tempfile().unwrap(), &Digest::of(b"key"), Slot::new(u64::MAX)).unwrap();
        let bytes = bytes(2 * CHUNK + 1000);
        writer.write_all(&bytes).unwrap();
        let written = writer.finish().unwrap();
        for offset in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK - 7, 2 * CHUNK, 2 * CHUNK + 993] {
            let mut part = [0; 7];
            written.read_back(offset as u64, &mut part).unwrap();
            assert_eq!(part, bytes[offset..offset + 7], "at {offset}");
        }
    }

    pub(in super::super) const FACTS: Facts = Facts {
        blob: Digest::ZERO,
        blob_size: 1,
        diff_id: Digest::ZERO,
        diff_size: 1,
        compression: 0,
        uids: Vec::new(),
        gids: Vec::new(),
        root_claimed: false,
        stamped: Vec::new(),
        opaque: Vec::new(),
        warnings: Vec::new(),
        body: None,
    };

    /// What a segment reads as, and where its body is in the tar, if the place is given before chunk `given` of the body.
    fn segment(given: usize, count: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        let key = Digest::of(b"key");
        let own = tempfile::tempfile().unwrap();
        let tar = Arc::new(tempfile::tempfile().unwrap());
        let slot = Slot::new(u64::MAX);
        let mut header = Vec::new();
        let entry = Entry { path: b"d".to_vec(), meta: Meta::default(), kind: Kind::Directory };
        wire::header(&entry, &mut header);
        let mut writer = Writer::new(own.try_clone().unwrap(), &key, slot.clone()).unwrap();
        writer.lead(512).unwrap();
        for chunk in 0..count {
            if chunk == given {
                slot.give(Place { tar: Arc::clone(&tar), number: 1, offset: 1024, stamp: 1_000_000 });
            }
            writer.header(&header, true).unwrap();
            writer.write_all(&bytes(CHUNK - 512)).unwrap();
        }
        writer.header(&header, true).unwrap();
        writer.end_body().unwrap();
        let body = writer.position();
        writer.write_all(&bytes(1000)).unwrap();
        let written = writer.finish().unwrap();
        let facts = Facts { stamped: written.stamped().to_vec(), ..FACTS };
        written.seal(600, &facts).unwrap();
        let segment = Segment::open(own, &key, |_| {
            // Nothing is known of it, so its digest counts.
            Ok(Some(BodyTar { file: Arc::clone(&tar), trust: Trust::Seen(None) }))
        })
        .unwrap();
        let mut read = Vec::new();
        let all = segment.body_len() + segment.split_len();
        assert_eq!(all, body + 600);
        let take = |_, part: &mut [u8]| {
            read.extend_from_slice(part);
            Ok::<_, crate::segment::file::Error>(())
        };
        segment.read(0, all, take).unwrap();
        let in_tar = segment.tar().map(|(tar, offset)| {
            assert_eq!(offset, 1536);
            let mut bytes = vec![0; body as usize];
            tar.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        });
        (read, in_tar)
    }

    #[test]
    fn a_segment_reads_the_same_wherever_its_body_is() {
        for count in [0, 1, 3] {
            let (own, none) = segment(usize::MAX, count);
            assert_eq!(none, None);
            let mut stamped = own[..own.len() - 600].to_vec();
            for at in (0..stamped.len()).step_by(CHUNK) {
                wire::set_mtime((&mut stamped[at..at + 512]).try_into().unwrap(), 1_000_000);
            }
            for given in 0..count {
                let (read, in_tar) = segment(given, count);
                assert!(read == own, "{given} of {count}");
                assert!(in_tar.as_ref() == Some(&stamped), "{given} of {count}");
            }
        }
    }
}
