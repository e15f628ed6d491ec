"""Counts of pairs in Perl: the script that is started becomes another language's process."""

import os
import sys

PROGRAM = r"""
use strict; use warnings;
binmode STDIN; binmode STDOUT; $| = 1;
sub take { my $size = shift; my $data = ''; read(STDIN, $data, $size) if $size; $data }
sub send_back { my $text = shift; print 'SRP1', pack('V2', length $text, 0), $text }
sub receive {
    my $head = take(12);
    exit if length $head < 12;
    my (undef, $header_bytes, $payload_bytes) = unpack 'a4V2', $head;
    my $header = take($header_bytes);
    return ($header, unpack 'q<*', take($payload_bytes));
}
open my $file, '<:raw', $ARGV[0] or die;
read $file, my $head, 18;
read $file, my $header, (unpack 'a8vV2', $head)[2];
my ($vocab) = $header =~ /"vocab_size":(\d+)/;
my @logs = map { log($_ + 0.5) } 0 .. 255;
my @rows = map { read $file, my $row, $vocab; pack 'f<*', @logs[unpack 'C*', $row] } 1 .. $vocab;
send_back(qq({"protocol": 1, "vocab_size": $vocab, "kind": "fixed"}));
my ($request) = receive();
my ($path) = $request =~ /"logits": *"([^"]*)"/;
open my $store, '+<:raw', $path or die;
send_back('{}');
while (my ($request, @numbers) = receive()) {
    my ($batch, $length) = $request =~ /\[(\d+), *(\d+)\]/;
    my @asked;
    for my $row (0 .. $batch - 1) {
        my $from = $numbers[$batch * $length + $row];
        push @asked, @numbers[$row * $length + $from .. ($row + 1) * $length - 1];
    }
    sysseek $store, 0, 0;
    syswrite $store, join '', @rows[@asked];
    send_back('{"shape": [' . @asked . ", $vocab]}");
}
"""
os.execv("/usr/bin/perl", ["perl", "-e", PROGRAM, sys.argv[2]])
