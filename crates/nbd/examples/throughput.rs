//! Reads a whole export from several threads and prints the rate.
//!
//! `cargo run --release -p vmtwin-nbd --example throughput -- SOCKET EXPORT THREADS KIB [CONNECTIONS]`

use std::{
    env,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use vmtwin_nbd::{Client, Error, Options};

fn main() -> Result<(), Error> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [socket, export, threads, kib, rest @ ..] = args.as_slice() else {
        eprintln!("usage: throughput SOCKET EXPORT THREADS KIB [CONNECTIONS]");
        return Ok(());
    };
    let number = |text: &String| text.parse::<usize>().unwrap_or(1).max(1);
    let (threads, piece) = (number(threads), number(kib) << 10);
    let connections = rest.first().map_or(1, number);
    let connect = |_| Client::connect_unix(Path::new(socket), export, &Options::default());
    let clients = (0..connections)
        .map(connect)
        .collect::<Result<Vec<_>, _>>()?;
    let size = clients[0].size_bytes();
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let client = &clients[number % connections];
                let next = &next;
                scope.spawn(move || read_all(client, next, piece))
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{threads} threads, {connections} connections, {} KiB: {:.2} GB/s",
        piece >> 10,
        size as f64 / seconds / 1e9
    );
    Ok(())
}

fn read_all(client: &Client, next: &AtomicU64, piece: usize) -> Result<(), Error> {
    let mut buf = vec![0; piece];
    loop {
        let offset = next.fetch_add(piece as u64, Ordering::Relaxed);
        if offset >= client.size_bytes() {
            return Ok(());
        }
        let len = (client.size_bytes() - offset).min(piece as u64) as usize;
        client.read_at(offset, &mut buf[..len])?;
    }
}
