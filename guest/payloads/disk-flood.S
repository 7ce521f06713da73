# A driver of a disk of 8 GiB with 16 reads of 3.75 GiB each in its queue, all into the same 96 MiB. It
# prints q when they are there; for a byte on COM1 it resets the device and prints R.
.include "virtio.inc"
.code32
.text
	flat_header 32
	find_device 2
	negotiate 0
	use_queue 0, 64, 0x10000
	go_live
	movl $0, 0x14000		# VIRTIO_BLK_T_IN, from sector 0 on (5.2.6)
	movl $0, 0x14004
	movl $0, 0x14008
	movl $0, 0x1400c
	describe 0x10000, 0, 0x14000, 16, NEXT, 1
	mov $0x10010, %edi
	mov $1, %ecx
	describe_many 40, 0x100000, 96 << 20, WRITE, (WRITE | NEXT), 41
	describe 0x10000, 41, 0x14010, 1, WRITE
	movw $16, 0x11002		# the ring is zeroes: descriptor 0 each time
	movl $0, QUEUE_NOTIFY(%ebx)
	print 'q'
	await_byte
	movl $0, STATUS(%ebx)
	print 'R'
	rest
