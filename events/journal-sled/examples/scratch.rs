//! scratch
#![allow(warnings, clippy::all, clippy::restriction, clippy::disallowed_methods)]
use events_journal::*;
use events_journal_sled::*;
use events_model::*;
use std::{
    os::unix::fs::FileExt,
    path::*,
    sync::{Arc, Condvar, Mutex, atomic::*},
    time::*,
};
use tokio::sync::oneshot;

static GROUPS: AtomicU64 = AtomicU64::new(0);
fn bare(dir: &Path, writers: usize, secs: f64, build: bool) -> f64 {
    let path = dir.join("bare");
    let f = std::fs::File::create(&path).unwrap();
    let z = vec![0u8; 1 << 20];
    let size = 384u64 << 20;
    for i in 0..384 {
        f.write_all_at(&z, i << 20).unwrap();
    }
    f.sync_all().unwrap();
    let q: Arc<(parking_lot::Mutex<(Vec<(Vec<u8>, oneshot::Sender<()>)>, bool, bool)>, parking_lot::Condvar)> =
        Default::default();
    let q2 = q.clone();
    let w = std::thread::spawn(move || {
        let mut off = 0u64;
        let mut batch = vec![];
        let mut buf = vec![];
        loop {
            {
                let mut g = q2.0.lock();
                while g.0.is_empty() {
                    if g.1 {
                        return;
                    }
                    g.2 = true;
                    q2.1.wait(&mut g);
                }
                std::mem::swap(&mut g.0, &mut batch);
            }
            buf.clear();
            for b in &batch {
                buf.extend_from_slice(&b.0);
            }
            GROUPS.fetch_add(1, Ordering::Relaxed);
            if off + buf.len() as u64 > size {
                off = 0;
            }
            f.write_all_at(&buf, off).unwrap();
            off += buf.len() as u64;
            f.sync_data().unwrap();
            for (_, r) in batch.drain(..) {
                r.send(());
            }
        }
    });
    let n = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let ts: Vec<_> = (0..writers)
        .map(|_| {
            let (q, n, stop) = (q.clone(), n.clone(), stop.clone());
            std::thread::spawn(move || {
                let st = StreamId::new("tenant/w1").unwrap();
                let mut v = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (s, r) = oneshot::channel();
                    v += 1;
                    let body = if build { commit(&st, v, &format!("c-{v}"), 330).encode() } else { vec![7u8; 512] };
                    let mut g = q.0.lock();
                    g.0.push((body, s));
                    let wake = std::mem::take(&mut g.2);
                    drop(g);
                    if wake {
                        q.1.notify_one();
                    }
                    r.blocking_recv().unwrap();
                    n.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs_f64(secs));
    stop.store(true, Ordering::Relaxed);
    for t in ts {
        t.join().unwrap();
    }
    let r = n.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    q.0.lock().1 = true;
    q.1.notify_all();
    w.join().unwrap();
    std::fs::remove_file(&path);
    r
}
fn commit(stream: &StreamId, v: u64, id: &str, bytes: usize) -> Commit {
    Commit {
        commit_id: CommitId::new(id).unwrap(),
        stream: stream.clone(),
        first_version: Version(v),
        command: Payload { kind: "freehold.log.v1.AdmitRequest", schema_version: 1, bytes: vec![1; 16] },
        events: vec![EventRecord {
            event_id: EventId::from_bytes([9; 16]),
            payload: Payload { kind: "freehold.log.v1.RequestAdmitted", schema_version: 1, bytes: vec![7; bytes] },
        }],
        episode_id: EpisodeId::from_bytes(
            ((v as u128) << 64 | stream.as_str().len() as u128)
                .wrapping_mul(0x9E3779B97F4A7C15F39CC0605CEDC835)
                .to_be_bytes(),
        ),
        causation_id: None,
        tenant: stream.tenant_id(),
        region: RegionId::new("local").unwrap(),
        epoch: 1,
        principal: Principal::admin(),
        recorded_at: TimestampUs(1_790_000_000_000_000),
        traceparent: String::new(),
        decider_version: 1,
        key_id: String::new(),
        context: Default::default(),
    }
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let v: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (v[11].parse::<f64>().unwrap() + v[12].parse::<f64>().unwrap()) / 100.0
}
fn rss() -> String {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM"))
        .collect::<Vec<_>>()
        .join(" ")
}
fn ours(dir: &Path, writers: usize, secs: f64) -> f64 {
    let d = dir.join("ours");
    std::fs::remove_dir_all(&d);
    let log = LocalStore::open(&d, Options::default()).unwrap();
    let n = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let c0 = cpu();
    let ts: Vec<_> = (0..writers)
        .map(|w| {
            let (log, n, stop) = (log.clone(), n.clone(), stop.clone());
            std::thread::spawn(move || {
                let s = StreamId::new(&format!("tenant/w{w}")).unwrap();
                let mut v = 0;
                while !stop.load(Ordering::Relaxed) {
                    v += 1;
                    let c = commit(&s, v, &format!("c-{v}"), 330);
                    log.append(Version(v - 1), c).wait().unwrap();
                    n.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs_f64(secs));
    stop.store(true, Ordering::Relaxed);
    for t in ts {
        t.join().unwrap();
    }
    let r = n.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    let c = cpu() - c0;
    if false {
        eprintln!("   cpu {:.2} us/commit", c * 1e6 / n.load(Ordering::Relaxed) as f64);
    }
    if secs > 2.0 {
        for t in std::fs::read_dir("/proc/self/task").unwrap() {
            let p = t.unwrap().path();
            let s = std::fs::read_to_string(p.join("stat")).unwrap();
            let name = s[s.find('(').unwrap()..=s.rfind(')').unwrap()].to_string();
            let v: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
            if v[11] != "0" || v[12] != "0" {
                eprintln!("     {name} user {} sys {}", v[11], v[12]);
            }
        }
    }
    drop(log);
    if secs > 2.0 {
        let v = verify(&d, &mut |_, _| {}).unwrap();
        eprintln!(
            "   groups {} = {:.0} per group, {:.0} groups/s",
            v.groups,
            v.commits as f64 / v.groups as f64,
            v.groups as f64 / secs
        );
    }
    std::fs::remove_dir_all(&d);
    r
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from("target/scratch");
    std::fs::create_dir_all(&dir).unwrap();
    match a[1].as_str() {
        "bench" => {
            for w in [1usize, 16, 256] {
                let (mut bs, mut os, mut cs) = (vec![], vec![], vec![]);
                for round in 0..a[2].parse().unwrap() {
                    bs.push(bare(&dir, w, 1.0, false));
                    os.push(ours(&dir, w, 1.0));
                    cs.push(bare(&dir, w, 1.0, true));
                }
                let med = |v: &mut Vec<f64>| {
                    v.sort_by(f64::total_cmp);
                    v[v.len() / 2]
                };
                let (b, o, c) = (med(&mut bs), med(&mut os), med(&mut cs));
                println!(
                    "{w:4} writers: bare {b:9.0}/s, bare with encoding {c:9.0}/s, ours {o:9.0}/s ratio {:.2} {:.2}",
                    o / b,
                    o / c
                );
            }
        }
        "ours" => {
            let o = ours(&dir, a[2].parse().unwrap(), a[3].parse().unwrap());
            println!("ours {o:.0}/s");
        }
        "bare" => {
            let o = bare(&dir, a[2].parse().unwrap(), a[3].parse().unwrap(), true);
            println!("bare {o:.0}/s cpu {} groups {}", cpu(), GROUPS.load(Ordering::Relaxed));
        }
        "fill" => {
            let d = dir.join("big");
            std::fs::remove_dir_all(&d);
            let log = LocalStore::open(&d, Options::default()).unwrap();
            println!("fresh open {} us", log.opening().duration_us);
            let n: u64 = a[2].parse().unwrap();
            let streams: u64 = a[3].parse().unwrap();
            let start = Instant::now();
            let mut rs = std::collections::VecDeque::new();
            let ids: Vec<_> = (0..streams).map(|s| StreamId::new(&format!("saga/acme/s{s}")).unwrap()).collect();
            println!("one commit is {} bytes", commit(&ids[0], 1, "commit-1000000", 330).encode().len());
            for i in 0..n {
                let v = i / streams + 1;
                rs.push_back(
                    log.append(Version(v - 1), commit(&ids[(i % streams) as usize], v, &format!("commit-{i}"), 330)),
                );
                if rs.len() > 20000 {
                    rs.pop_front().unwrap().wait().unwrap();
                }
            }
            for r in rs {
                r.wait().unwrap();
            }
            println!("filled {n} in {:?} {}", start.elapsed(), rss());
            let t = Instant::now();
            log.close();
            println!("closed in {:?} {}", t.elapsed(), rss());
        }
        "open" => {
            let d = dir.join("big");
            let c0 = cpu();
            let log = LocalStore::open(&d, Options::default()).unwrap();
            println!("{:?} cpu {:.2}", log.opening(), cpu() - c0);
            println!("{:?} {}", log.stat().unwrap(), rss());
            let start = Instant::now();
            let mut n = 0u64;
            let mut next = Position(1);
            let head = log.head_position();
            while next <= head {
                let p = log.read_log(next, Direction::Forward, &Filter::default(), 10000).unwrap();
                n += p.commits.len() as u64;
                next = p.next;
            }
            let e = start.elapsed();
            println!("scan {n} in {e:?} = {:.0}/s", n as f64 / e.as_secs_f64());
            let start = Instant::now();
            let mut n = 0u64;
            let mut next = Position(1);
            let mut ev = 0u64;
            while next <= head {
                let p = log.read_log(next, Direction::Forward, &Filter::default(), 10000).unwrap();
                for c in &p.commits {
                    for e in c.view().unwrap().events() {
                        ev += e.unwrap().payload.bytes.len() as u64;
                    }
                    n += 1;
                }
                next = p.next;
            }
            let e = start.elapsed();
            println!("scan+view {n} in {e:?} = {:.0}/s {ev}", n as f64 / e.as_secs_f64());
            let s = StreamId::new("saga/acme/s1").unwrap();
            let start = Instant::now();
            for i in 0..10000u64 {
                let k = i * 131 % head.0;
                let streams: u64 = a[2].parse().unwrap();
                let s = StreamId::new(&format!("saga/acme/s{}", k % streams)).unwrap();
                assert!(log.find_commit(&s, &CommitId::new(&format!("commit-{k}")).unwrap()).unwrap().is_some());
            }
            println!("find_commit {:?} each", start.elapsed() / 10000);
            let start = Instant::now();
            for i in 0..10000u64 {
                assert!(log.find_commit(&s, &CommitId::new(&format!("none-{i}")).unwrap()).unwrap().is_none());
            }
            println!("find_commit miss {:?} each", start.elapsed() / 10000);
            let start = Instant::now();
            for i in 0..1000u64 {
                log.read_stream(&s, Version(u64::MAX), Direction::Backward, 10).unwrap();
            }
            println!("last 10 of a stream {:?}", start.elapsed() / 1000);
            let start = Instant::now();
            for i in 0..1000u64 {
                log.read_log(Position(i * 1999 % head.0 + 1), Direction::Forward, &Filter::default(), 1).unwrap();
            }
            println!("read_log 1 {:?}", start.elapsed() / 1000);
            println!("{}", rss());
            let t = Instant::now();
            log.close();
            println!("closed in {:?}", t.elapsed());
        }
        "noindex" => {
            let d = dir.join("big");
            std::fs::remove_dir_all(d.join("index"));
            let c0 = cpu();
            let log = LocalStore::open(&d, Options::default()).unwrap();
            println!("{:?} cpu {:.2} {}", log.opening(), cpu() - c0, rss());
            let t = Instant::now();
            log.close();
            println!("closed in {:?} {}", t.elapsed(), rss());
        }
        "ro" => {
            let d = dir.join("big");
            let log = LocalStore::open_read_only(&d).unwrap();
            println!("{:?} {}", log.opening(), rss());
            let t = Instant::now();
            println!("{:?}", verify(&d, &mut |_, _| {}).unwrap());
            println!("verify {:?}", t.elapsed());
        }
        _ => {}
    }
}
