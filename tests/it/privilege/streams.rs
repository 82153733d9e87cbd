//! Streams that end, flip, wait or never end.

use std::io::Write as _;
use std::time::{Duration, Instant};

use prepull::digest::Digest;
use prepull::entry::Kind;

use super::stream::{Stream, config_of, diff, entry, good, image_record, request as request_of};
use super::{By, Jail, figure};
use crate::command::needs_root;

#[test]
fn cut_off_at_every_block() {
    if !needs_root("privilege::streams::cut_off_at_every_block") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("good");
    let stream = good(&jail, 2, Some(1)).end();
    let mut tried = 0;
    for length in (0..stream.len()).step_by(512).chain((1..stream.len()).step_by(997)) {
        let why = "ends before its end|canonical|not begin with it";
        jail.refuses(By::ForUser, &format!("cut off at {length}"), why, &stream[..length]);
        tried += 1;
    }
    jail.run(By::ForUser).feed(&stream).succeeded("all of it");
    assert!(jail.podman().contains("localhost/good:2 "));
    figure("streams to the helper that are cut off", tried);
}

#[test]
fn flipped_bytes() {
    if !needs_root("privilege::streams::flipped_bytes") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("good");
    let request = Stream::new("install", &jail).0.len();
    let stream = good(&jail, 2, Some(1)).end();
    let (mut tried, mut taken) = (0, 0);
    let before = jail.published();
    let id = Digest::of(config_of(2).as_bytes()).hex();
    let remove = Stream::default().file("prepull-request", format!("{}id {id}\n", request_of("remove", &jail))).end();
    // A step that is no divisor of a block comes to all places of a header.
    for (number, at) in (0..stream.len()).step_by(61).chain(request..request + 512).enumerate() {
        let mut flipped = stream.clone();
        flipped[at] ^= [0x01, 0x80, 0x20, 0xff][number % 4];
        // sudo takes its time.
        let by = if number % 8 == 0 { By::Sudo } else { By::ForUser };
        let outcome = jail.run(by).feed(&flipped);
        jail.outside_is_unchanged(&format!("byte {at}"));
        assert!(outcome.answer.is_some(), "byte {at}: {outcome:?}");
        assert!(!outcome.stderr.contains("panicked"), "byte {at}: {outcome:?}");
        if outcome.code == 0 {
            // The content of a file, and nothing else, is what it is: the image is there, and goes again.
            let block = at / 512 * 512;
            assert!(!stream[block..block + 512].windows(5).any(|text| text == b"ustar"), "byte {at} of a header");
            jail.run(By::ForUser).feed(&remove).succeeded(&format!("byte {at}"));
            taken += 1;
        }
        assert_eq!(jail.published(), before, "byte {at}");
        tried += 1;
    }
    assert!(taken > 0 && taken < tried / 4, "{taken} of {tried}");
    assert_eq!(jail.staging(), 0);
    assert!(jail.podman().contains("localhost/good:1 "));
    figure("streams to the helper with a changed byte", tried);
}

#[test]
fn garbage() {
    if !needs_root("privilege::streams::garbage") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("good");
    let mut tried = 0;
    let mut state = 1_u64;
    for number in 0..100_usize {
        let bytes: Vec<u8> = (0..number * 41)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let stream = match number % 4 {
            0 => bytes,
            1 => Stream::new("install", &jail).raw(&bytes).end(),
            2 => Stream::new("install", &jail).dir(diff(2)).raw(&bytes).end(),
            _ => Stream::new("query", &jail).raw(&bytes).raw(b"x").end(),
        };
        let why = "canonical|ends before its end|not begin with it|its path|content|not belong";
        jail.refuses(By::ForUser, &format!("garbage {number}"), why, &stream);
        tried += 1;
    }
    for (bytes, why) in [
        (vec![0; 1 << 20], "does not begin with it"),
        (vec![0xff; 1 << 20], "canonical"),
        (vec![0x5a; 5000], "canonical"),
        (b"GET / HTTP/1.0\r\n\r\n".repeat(100), "canonical"),
        (vec![0; 1024], "does not begin with it"),
        (vec![0; 512], "ends before its end"),
        (Vec::new(), "ends before its end"),
    ] {
        jail.refuses(By::Sudo, "garbage", why, &bytes);
        tried += 1;
    }
    figure("garbage to the helper", tried);
}

/// `max_seconds` in these tests.
const MAX: Duration = Duration::from_secs(2);

/// What it is, why it is refused, what comes first, what comes then and again, and how long after the one before.
type Slow = (&'static str, &'static str, Vec<u8>, Vec<u8>, Duration);

/// When it must be over on a machine with other things to do.
const LATE: Duration = Duration::from_secs(8);

#[test]
fn questions_without_an_end() {
    if !needs_root("privilege::streams::questions_without_an_end") {
        return;
    }
    // Longer than it takes to count the images, however slow the machine is.
    let jail = Jail::new("max_seconds = 120");
    let record = image_record(b"{}", b"{}", Some(1), "localhost/a:1").to_lines();
    let images = Stream::default().file("prepull-image", record).0.repeat(100);
    for by in [By::ForUser, By::Sudo] {
        let asked = Stream::new("query", &jail).0;
        let outcome = jail.run(by).feed_by(|input| {
            let mut written = input.write_all(&asked);
            while written.is_ok() {
                written = input.write_all(&images);
            }
        });
        let error = outcome.refused("images that are asked for");
        assert!(error.contains("too many layers or images"), "{by:?}: {error}");
    }
    figure("endless questions to the helper", 2);
}

#[test]
fn slow_and_endless() {
    if !needs_root("privilege::streams::slow_and_endless") {
        return;
    }
    let jail = Jail::new("max_seconds = 2\nmax_bytes = 1000000000");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("good");
    let start = || Stream::new("install", &jail).dir(diff(2)).0;
    let big = entry(format!("{}/big", diff(2)), Kind::Regular { size: 1 << 45 });
    let largest = entry(format!("{}/big", diff(2)), Kind::Regular { size: 900_000_000 });
    let directory = Stream::default().dir(format!("{}/d", diff(2))).0;
    let (slowly, at_once) = (Duration::from_millis(50), Duration::ZERO);
    let (late, none, open) = ("it takes too long (max_seconds)", "does not begin with it", "is not complete");
    let large_file = Stream(start()).entry(&largest).0;
    let endless_file = Stream(start()).entry(&big).0;
    let streams: Vec<Slow> = vec![
        ("a byte at a time", late, Vec::new(), good(&jail, 2, None).0, slowly),
        ("a byte at a time of a file", late, large_file, vec![b'x'; 1000], slowly),
        ("nothing at all", late, Vec::new(), Vec::new(), at_once),
        ("nothing after a start", late, start(), Vec::new(), at_once),
        ("zeros", none, Vec::new(), vec![0; 1 << 16], at_once),
        ("zeros after a start", open, start(), vec![0; 1 << 16], at_once),
        ("a file without an end", "max_bytes", endless_file, vec![b'x'; 1 << 16], at_once),
        ("one directory again and again", late, start(), directory.repeat(100), at_once),
    ];
    // A file never makes its reader wait.
    let path = jail.at("stream");
    let mut file = fs_err::File::create(&path).unwrap();
    file.write_all(&start()).unwrap();
    let many = directory.repeat(10_000);
    for _ in 0..(600 << 20) / many.len() {
        file.write_all(&many).unwrap();
    }
    drop(file);
    let before = jail.published();
    for by in [By::ForUser, By::Sudo] {
        let outcome = jail.run(by).setup(&format!("exec <{};", path.display())).feed(b"");
        let error = outcome.refused("a large file");
        assert!(error.contains(late), "{error}");
        assert!((MAX..LATE).contains(&outcome.took), "{:?}", outcome.took);
        assert_eq!((jail.staging(), jail.published()), (0, before.clone()), "a large file");
    }
    fs_err::remove_file(&path).unwrap();
    let tried = 2 * streams.len() + 2;
    let all = [By::ForUser, By::Sudo].into_iter().flat_map(|by| streams.iter().map(move |stream| (by, stream)));
    let feed = |by: By, (_, _, first, rest, pause): &Slow| {
        jail.run(by).feed_by(move |input| {
            if input.write_all(first).is_err() {
                return;
            }
            let end = Instant::now() + Duration::from_secs(20);
            while Instant::now() < end {
                let written = if pause.is_zero() && !rest.is_empty() {
                    input.write_all(rest)
                } else if rest.is_empty() {
                    // Keeps it open for longer than it may take.
                    std::thread::sleep(2 * MAX);
                    return;
                } else {
                    rest.iter().try_for_each(|byte| {
                        std::thread::sleep(*pause);
                        input.write_all(&[*byte])
                    })
                };
                if written.is_err() {
                    return;
                }
            }
        })
    };
    // They wait most of the time: as many at once as one user may have.
    let all: Vec<_> = all.collect();
    for some in all.chunks(prepull::helper::caller::RUNS_MAX as usize) {
        std::thread::scope(|scope| {
            let run = |pair: &_| {
                let (by, stream): (By, &Slow) = *pair;
                (by, stream.0, stream.1, scope.spawn(move || feed(by, stream)))
            };
            let running: Vec<_> = some.iter().map(run).collect();
            for (by, what, why, run) in running {
                let outcome = run.join().unwrap();
                let error = outcome.refused(what);
                assert!(error.contains(why) && outcome.took < LATE, "{what}, {by:?}: {error} {:?}", outcome.took);
                assert!(why != late || outcome.took >= MAX, "{what}, {by:?}: {:?}", outcome.took);
            }
        });
    }
    jail.outside_is_unchanged("slow and endless");
    assert_eq!(jail.published(), before, "slow and endless");
    assert_eq!(jail.staging(), 0, "slow and endless");
    figure("slow and endless streams to the helper", tried);
}

#[test]
fn what_a_signal_interrupts_is_made_again() {
    if !needs_root("privilege::streams::what_a_signal_interrupts_is_made_again") {
        return;
    }
    let jail = Jail::new("");
    jail.run(By::ForUser).feed(&good(&jail, 1, None).end()).succeeded("good");
    let (path, trace) = (jail.at("stream"), jail.at("trace"));
    let mut tried = 0;
    // Standard input, and the records of the store.
    let files = [
        path.clone(),
        jail.store().join("overlay-layers/layers.json"),
        jail.store().join("overlay-images/images.json"),
    ];
    for (number, calls) in ["poll,ppoll", "read", "poll,ppoll,read"].into_iter().enumerate() {
        let number = number as u64 + 2;
        // More than is read at once.
        let large =
            Stream::new("install", &jail).dir(diff(number)).file(format!("{}/f", diff(number)), vec![b'x'; 1 << 20]);
        let large =
            large.end_layer(number, Some(1)).image(config_of(number).as_bytes(), Some(number), "localhost/large:1");
        fs_err::write(&path, large.end()).unwrap();
        let mut wrapper =
            format!("strace -o {} -e trace={calls} -e inject={calls}:error=EINTR:when=1+2", trace.display());
        for file in &files {
            wrapper.push_str(&format!(" -P {}", file.display()));
        }
        let run = jail.run(By::ForUser).setup(&format!("exec <{};", path.display())).wrapper(&wrapper);
        run.feed(b"").succeeded(calls);
        let trace = fs_err::read_to_string(&trace).unwrap();
        let hit = trace.lines().filter(|line| line.ends_with("(INJECTED)")).count();
        assert!(hit >= 4, "{calls}: {hit}\n{trace}");
        tried += hit;
    }
    assert!(jail.podman().contains("localhost/large:1 "));
    figure("calls of the helper that a signal interrupts", tried);
}
