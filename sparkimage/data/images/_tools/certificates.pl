# What update-ca-certificates makes of /etc/ca-certificates.conf, in one process: the links in
# /etc/ssl/certs, and the bundle. `openssl rehash` is to follow.
use strict;
use warnings;

chdir '/etc/ssl/certs' or die "/etc/ssl/certs: $!";
open my $conf, '<', '/etc/ca-certificates.conf' or die "ca-certificates.conf: $!";
open my $bundle, '>', 'ca-certificates.crt.new' or die "ca-certificates.crt: $!";
while (my $name = <$conf>) {
    chomp $name;
    next if $name eq '' or $name =~ /^#/;
    my $file = "/usr/share/ca-certificates/$name";
    open my $certificate, '<', $file or die "$file: $!";
    my $text = do { local $/; <$certificate> };
    $text .= "\n" unless $text =~ /\n\z/;
    print {$bundle} $text or die "ca-certificates.crt: $!";
    my $link = $name =~ s{.*/}{}r =~ s/\.crt\z//r =~ tr/ ,()/__==/r . '.pem';
    unlink $link;
    symlink $file, $link or die "$link: $!";
}
close $bundle or die "ca-certificates.crt: $!";
rename 'ca-certificates.crt.new', 'ca-certificates.crt' or die "ca-certificates.crt: $!";
