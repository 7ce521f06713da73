# A driver of a socket device that opens 1000 connections to port 52 of the host, as far as the host takes
# them, and prints f. It gives the device no buffers.
.include "virtio.inc"
.code32
.text
	flat_header 32
	find_device 19
	negotiate 0
	use_queue 1, 128, 0x10000
	go_live
	describe 0x10000, 0, 0x14000, 44
	movl $3, 0x14000		# source CID (5.10.6)
	movl $2, 0x14008		# target CID: the host
	movl $52, 0x14014		# target port
	movl $0x00010001, 0x1401c	# a stream, REQUEST
	movl $0x10000, 0x14024		# bytes of buffer
	xor %edi, %edi
1:	lea 1000(%edi), %eax
	mov %eax, 0x14010		# source port
	inc %edi
	mov %di, 0x11002		# the ring is zeroes: descriptor 0 each time
	movl $1, QUEUE_NOTIFY(%ebx)
	mov $500000, %ecx
2:	cmp %di, 0x12002
	je 3f
	loop 2b
	jmp 4f
3:	cmp $1000, %edi
	jne 1b
4:	print 'f'
	rest
