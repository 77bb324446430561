#!/bin/sh
# Listens on this node's address in the data network, and tries to connect to the other nodes'. Reads
# their addresses and ports from one line of its input. Ends with its input, and after a minute in any
# case: nothing stays that listens.
# reach.sh DOCKER ADDRESS SECONDS PORT...: SECONDS for all connections; port 0 is any free one.
shift
exec perl -e '
use strict;
use warnings;
use Fcntl;
use Errno qw(EINPROGRESS);
use Socket qw(:DEFAULT :addrinfo);

alarm 60;
$| = 1;
my ($own, $seconds, @ports) = @ARGV;

sub opened {
    my ($address, $port) = @_;
    my $hints = {flags => AI_NUMERICHOST | AI_NUMERICSERV, socktype => SOCK_STREAM};
    my (undef, $found) = getaddrinfo($address, $port, $hints);
    socket(my $socket, $found->{family}, SOCK_STREAM, 0) or die "$address: $!\n";
    return ($socket, $found->{addr});
}

my @listening;
for my $port (@ports) {
    my ($socket, $address) = opened($own, $port);
    setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($socket, $address) && listen($socket, 128) or next;
    my (undef, undef, $bound) = getnameinfo(getsockname($socket), NI_NUMERICHOST | NI_NUMERICSERV);
    print "port $bound\n";
    push @listening, $socket;
}
print "ready\n";

my %connecting;
my @peers = split " ", <STDIN> // "";
while (my ($name, $port) = splice @peers, 0, 2) {
    my ($socket, $address) = opened($name, $port);
    fcntl($socket, F_SETFL, O_NONBLOCK);
    if (connect($socket, $address) || $! == EINPROGRESS) {
        $connecting{fileno $socket} = [$socket, $name, $port];
    } else {
        print "failed $name $port $!\n";
    }
}
my $until = time + $seconds;
while (%connecting && time < $until) {
    my $writable = "";
    vec($writable, $_, 1) = 1 for keys %connecting;
    select(undef, $writable, undef, $until - time);
    for (grep { vec($writable, $_, 1) } keys %connecting) {
        my ($socket, $name, $port) = @{delete $connecting{$_}};
        $! = unpack "i", getsockopt($socket, SOL_SOCKET, SO_ERROR);
        print "failed $name $port $!\n" if $!;
    }
}
print "failed $_->[1] $_->[2] no answer in $seconds s\n" for values %connecting;
print "tried\n";
<STDIN>;
' "$@"
