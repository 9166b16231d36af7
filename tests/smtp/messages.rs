//! What becomes of messages: how many, how large, and what is left of those that end early.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use graphpost::spool::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::relay::{Relay, Settings};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The best-known gateway of this kind overwrote messages that came on one connection.
#[tokio::test]
async fn eighty_messages_on_one_connection_are_eighty_messages() {
    let relay = Relay::start(&Settings::default()).await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO pool", "250").await;
    let mut answered = BTreeSet::new();
    for number in 0..80 {
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        client
            .expect(&format!("RCPT TO:<r{number}@b.example>"), "250")
            .await;
        client.expect("DATA", "354").await;
        let reply = client.say(&format!("Subject: {number}\r\n\r\nbody\r\n.")).await;
        answered.insert(reply.rsplit_once(' ').unwrap().1.to_owned());
        if number % 2 == 0 {
            client.expect("RSET", "250").await;
        }
    }
    client.expect("QUIT", "221").await;

    let queue = relay.queue().await;
    let queued: BTreeSet<_> = queue.iter().map(|it| it.id.to_string()).collect();
    assert_eq!(
        (queued.len(), &queued),
        (80, &answered),
        "what 250 said is what is in the queue"
    );
    let mut message_ids = BTreeSet::new();
    for (number, entry) in queue.iter().enumerate() {
        let content = relay.spool.content(entry.id).await.unwrap();
        assert_eq!(content, format!("Subject: {number}\r\n\r\nbody\r\n"));
        assert_eq!(
            entry.submission.envelope.recipients[0].as_str(),
            format!("r{number}@b.example")
        );
        assert!(entry.submission.message_id.ends_with("@contoso.com"));
        message_ids.insert(&entry.submission.message_id);
    }
    assert_eq!(message_ids.len(), 80);
    assert_eq!(
        relay.metric("graphpost_smtp_messages_total{listener=\"test\",result=\"accepted\"}"),
        80
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once_do_not_mix() {
    let relay = Relay::start(&Settings::default()).await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..50 {
        let mut client = relay.connect().await;
        clients.spawn(async move {
            client.reply().await;
            client.expect("EHLO x", "250").await;
            for message in 0..5 {
                client
                    .send(format!(
                        "MAIL FROM:<c{number}@legacy.local>\r\nRCPT TO:<m{message}@c{number}.example>\r\nDATA\r\n"
                    ))
                    .await;
                for code in ["250", "250", "354"] {
                    assert!(client.reply().await.starts_with(code));
                }
                client.expect(&format!("{number}/{message}\r\n."), "250 2.0.0").await;
            }
            client.expect("QUIT", "221").await;
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let queue = relay.queue().await;
    assert_eq!(queue.len(), 250);
    for entry in queue {
        let content = relay.spool.content(entry.id).await.unwrap();
        let text = String::from_utf8(content.to_vec()).unwrap();
        let (number, message) = text.trim_end().split_once('/').unwrap();
        let envelope = entry.submission.envelope;
        assert_eq!(
            envelope.reverse_path.to_string(),
            format!("c{number}@legacy.local")
        );
        assert_eq!(
            envelope.recipients[0].as_str(),
            format!("m{message}@c{number}.example")
        );
    }
}

/// Whatever octet is the last: before the final dot there is no message, after it there is one.
#[tokio::test]
async fn a_client_that_vanishes_at_any_octet() {
    const DIALOGUE: &str = "EHLO x\r\nMAIL FROM:<erp@contoso.com>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n\
        Subject: x\r\n\r\nbody\r\n.\r\n";
    let relay = Relay::start(&Settings::default()).await;
    for end in 0..=DIALOGUE.len() {
        for still_reads in [true, false] {
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            client.write_all(&DIALOGUE.as_bytes()[..end]).await.unwrap();
            client.shutdown().await.unwrap();
            let client = still_reads.then_some(client);
            relay
                .handle
                .converse(0, server, CLIENT, CancellationToken::new())
                .await;
            drop(client);
            // One that does not even read the greeting is not listened to.
            let want = usize::from(end == DIALOGUE.len() && still_reads);
            let queue = relay.queue().await;
            assert_eq!(queue.len(), want, "after {:?}", &DIALOGUE[..end]);
            if let Some(entry) = queue.first() {
                relay.spool.act(entry.id, Action::Delete, "test").await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_read_to_its_end_and_refused() {
    let settings = Settings {
        smtp: "max_message_size = 65536".into(),
        ..Settings::default()
    };
    let relay = Relay::start(&settings).await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    let line = format!("{}\r\n", "x".repeat(62));
    for (lines, code) in [
        (1025, "552 5.3.4"),
        (1024, "250 2.0.0"),
        (2000, "552 5.3.4"),
        (1, "250 2.0.0"),
    ] {
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        client.expect("RCPT TO:<a@b.example>", "250").await;
        client.expect("DATA", "354").await;
        client.expect(&format!("{}.", line.repeat(lines)), code).await;
    }
    let sizes: Vec<u64> = relay.queue().await.iter().map(|it| it.size).collect();
    assert_eq!(sizes, [65536, 64]);

    // At twice the limit patience ends.
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    client.expect("DATA", "354").await;
    let _ = client.try_send(line.repeat(10_000)).await;
    assert!(client.hung_up().await);
    assert_eq!(relay.queue().await.len(), 2);
    assert_eq!(
        relay.metric("graphpost_smtp_rejections_total{listener=\"test\",result=\"size\"}"),
        3
    );
}

#[tokio::test]
async fn a_full_queue_says_so_before_the_data() {
    let settings = Settings {
        spool: "max_messages = 1".into(),
        ..Settings::default()
    };
    let relay = Relay::start(&settings).await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    for (answer, content) in [("354", true), ("452 4.3.1", false), ("452 4.3.1", false)] {
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        client.expect("RCPT TO:<a@b.example>", "250").await;
        client.expect("DATA", answer).await;
        if content {
            client.expect("x\r\n.", "250").await;
        }
    }
    client.expect("QUIT", "221").await;
    assert_eq!(relay.queue().await.len(), 1);
}

#[tokio::test]
async fn a_header_larger_than_the_policy_can_see_is_refused() {
    let settings = Settings {
        smtp: "max_message_size = 3000000".into(),
        ..Settings::default()
    };
    let relay = Relay::start(&settings).await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    client.expect("DATA", "354").await;
    // The forbidden From stands where nobody would look any more.
    let padding = format!("X-Pad: {}\r\n", "x".repeat(990)).repeat(300);
    client
        .expect(
            &format!("{padding}From: ceo@contoso.com\r\n\r\nbody\r\n."),
            "552 5.3.4",
        )
        .await;
    assert_eq!(relay.queue().await.len(), 0);
    client.expect("NOOP", "250").await;
}

/// A line of base64 with no line end at all, as some scanners send it.
#[tokio::test]
async fn one_line_of_a_megabyte_is_content_like_any_other() {
    let relay = Relay::start(&Settings::default()).await;
    let mut client = relay.connect().await;
    client.reply().await;
    client.expect("EHLO x", "250").await;
    client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
    client.expect("RCPT TO:<a@b.example>", "250").await;
    client.expect("DATA", "354").await;
    let line = "QUJD".repeat(1 << 18);
    client
        .expect(&format!("Subject: x\r\n\r\n{line}\r\n."), "250 2.0.0")
        .await;
    let queue = relay.queue().await;
    let content = relay.spool.content(queue[0].id).await.unwrap();
    assert_eq!(content.len(), "Subject: x\r\n\r\n".len() + line.len() + 2);
    assert!(content.ends_with(b"QUJD\r\n"));
}

#[tokio::test]
async fn a_stream_of_octets_makes_no_message_and_no_panic() {
    let relay = Relay::start(&Settings::default()).await;
    let mut seed = 7u64;
    for _ in 0..200 {
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // Mostly what a dialogue is made of.
                b"\r\n.ADTHELOMIRCPFB:<>@ =0\x00\xff"[(seed >> 40) as usize % 26]
            })
            .collect();
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(&noise).await.unwrap();
        client.shutdown().await.unwrap();
        relay
            .handle
            .converse(0, server, CLIENT, CancellationToken::new())
            .await;
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        assert!(said.starts_with(b"220 ") && said.is_ascii());
    }
    assert_eq!(relay.queue().await.len(), 0);
}

/// What got 250 can be sent: not the size decides, but what the message becomes in a request.
#[tokio::test]
async fn what_does_not_fit_into_a_request_is_refused_at_once() {
    let base64: &[u8] = &[b"QUJD".repeat(19), b"\r\n".to_vec()].concat();
    let refused = ["552 5.3.4", "large_messages = true"];
    for (what, head, line, size, refused) in [
        // A scan of 2.5 MB is 3.4 MB of base64, and no more in the request.
        (
            "base64",
            "Content-Type: application/pdf; name=scan.pdf\r\nContent-Transfer-Encoding: base64\r\n",
            base64,
            3_450_000,
            None,
        ),
        (
            "text",
            "",
            b"The quick brown fox jumps over the lazy dog and some more\r\n",
            3_000_000,
            None,
        ),
        (
            "eight-bit octets",
            "",
            &[b"\xfc".repeat(70), b"\r\n".to_vec()].concat(),
            2_500_000,
            Some(refused),
        ),
        (
            "quotation marks",
            "",
            &[b"\"".repeat(70), b"\r\n".to_vec()].concat(),
            2_500_000,
            Some(refused),
        ),
        (
            "a signed message",
            "Content-Type: multipart/signed; boundary=b\r\n",
            b"--b\r\n\r\n",
            3_000_000,
            Some(refused),
        ),
    ] {
        let relay = Relay::start(&Settings::default()).await;
        let mut client = relay.connect().await;
        client.reply().await;
        client.expect("EHLO erp", "250").await;
        client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
        for number in 0..20 {
            client
                .expect(&format!("RCPT TO:<r{number}@b.example>"), "250")
                .await;
        }
        client.expect("DATA", "354").await;
        let mut data = format!("Subject: x\r\n{head}\r\n").into_bytes();
        data.extend(line.repeat((size - data.len()) / line.len()));
        data.extend(b".\r\n");
        client.send(&data).await;
        let reply = client.reply().await;
        match refused {
            Some(words) => {
                assert!(words.iter().all(|it| reply.contains(it)), "{what}: {reply}");
                // In step, and with nothing left behind.
                client.expect("MAIL FROM:<erp@contoso.com>", "250").await;
                assert_eq!(relay.queue().await.len(), 0);
            }
            None => assert!(reply.starts_with("250 "), "{what}: {reply}"),
        }
    }
}
